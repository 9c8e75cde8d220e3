"""The command of the README, through the real `deepspeed` launcher."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from trainer.run_folder.metrics import read_log

REPOSITORY = Path(__file__).resolve().parents[2]


def test_deepspeed_starts_two_ranks_from_another_folder(tiny_recipe, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2",
        "--master_port", str(port), str(REPOSITORY / "launcher" / "train.py"), str(tiny_recipe),
        "run.output_dir=run", "engine.preset=cpu_zero2",
    ]  # fmt: skip
    ended = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    folder = tmp_path / "run"  # the override's relative path starts where the command was given
    assert len(read_log(folder / "log.jsonl")) == 8
    assert "device     cpu x 2" in ended.stdout + ended.stderr
    checkpoint = folder / "checkpoints" / "step-00000008" / "trainer.json"
    saved = json.loads(checkpoint.read_text())
    assert (saved["world_size"], saved["zero_stage"]) == (2, 2)
