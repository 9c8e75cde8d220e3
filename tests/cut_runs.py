"""Runs cut back to a checkpoint, which spare the tests of resume the first half of each run."""

import json
import shutil
from pathlib import Path


def cut_back(finished: Path, copy: Path, step: int) -> Path:
    """Copy a finished run as it was after the checkpoint of a step: no later one, line or model."""
    shutil.copytree(finished, copy)
    newest = copy / "checkpoints" / f"step-{step:08d}"
    for path in newest.parent.iterdir():
        if path.name > newest.name:
            shutil.rmtree(path)
    assert (newest / "MANIFEST.json").is_file()
    shutil.rmtree(copy / "model")
    log = copy / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    assert len(kept) < len(lines)
    log.write_text("".join(kept))
    return copy
