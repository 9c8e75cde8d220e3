"""A sweep of real runs: a cell that fails, one that is stopped, goes on and is then passed over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.sweep import main
from trainer.run_folder.metrics import read_log

REPOSITORY = Path(__file__).resolve().parents[2]


def sweep(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the program in a group of its own, as a terminal does."""
    script = REPOSITORY / "launcher" / "sweep.py"
    return subprocess.Popen(
        [sys.executable, str(script), str(recipe), *arguments], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def broken(tiny_model, tmp_path) -> Path:
    """A model whose embedding has fewer rows than the tokenizer has tokens: exit code 4."""
    folder = tmp_path / "broken"
    folder.mkdir()
    config = json.loads((tiny_model / "config.json").read_text()) | {"vocab_size": 10}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    return folder


def test_a_failed_cell_does_not_stop_the_rest_and_a_stopped_sweep_goes_on_where_it_was(
    tiny_recipe, tiny_model, broken, tmp_path
):
    root = tmp_path / "grid"
    arguments = [
        "optim.max_steps=30", "eval.interval=never", "save.interval=30",
        f"run.output_dir={root}", "--methods", "lora", "--models", f"broken={broken}",
        f"good={tiny_model}", "--seeds", "1", "--set", "lora:tuning.lora_r=2",
    ]  # fmt: skip
    good = root / "lora" / "good" / "seed-1"
    running = sweep(tiny_recipe, *arguments)
    deadline = time.monotonic() + 120
    while not (good / "log.jsonl").exists() or not read_log(good / "log.jsonl"):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)  # Ctrl-C: to the sweep, whose cell is another group
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 75, printed
    assert "[1/2] lora/broken/seed-1: failed with code 4" in printed
    assert "the model's embedding 10 rows" in printed
    assert "stopped at lora/good/seed-1; the same command continues" in printed
    [saved] = (good / "checkpoints").iterdir()
    assert 1 <= int(saved.name.removeprefix("step-")) < 30
    assert not (good / "report" / "test.json").exists()

    running = sweep(tiny_recipe, *arguments)
    printed, _ = running.communicate(timeout=120)
    assert running.returncode == 4, printed  # the code of the cell that failed
    assert "[2/2] lora/good/seed-1: finished in" in printed
    assert "1 of 2 cells failed" in printed
    assert f"continues after step {int(saved.name[-8:])}" in good.with_suffix(".txt").read_text()
    assert [row["step"] for row in read_log(good / "log.jsonl")] == list(range(1, 31))
    assert "tuning" in (good / "config.yaml").read_text()
    assert "lora_r: 2" in (good / "config.yaml").read_text()
    page = (root / "report" / "report.md").read_text()
    assert "1 cells are finished, 1 are not" in page
    assert "lora/broken/seed-1: exit code 4" in page
    assert "Roc auc" not in page

    before = {path: path.stat().st_mtime_ns for path in good.rglob("*") if path.is_file()}
    running = sweep(tiny_recipe, *arguments)
    printed, _ = running.communicate(timeout=120)
    assert running.returncode == 4, printed
    assert "[2/2] lora/good/seed-1: finished before" in printed
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_is_wrong_with_a_grid_is_one_line_and_exit_code_2(tiny_recipe, tmp_path, capsys):
    root = tmp_path / "grid"
    arguments = [str(tiny_recipe), f"run.output_dir={root}", "--methods", "full", "lorra"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: lorra: tuning.method 'lorra' is not known; did you mean 'lora'?")
    assert main([*arguments[:-1], "--gpus", "0"]) == 2
    assert capsys.readouterr().err == "error: --gpus must be above 0\n"
    assert not root.exists()
