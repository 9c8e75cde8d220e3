"""launcher/doctor.py on this machine; tests/cluster has several."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.doctor import main

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = str(REPOSITORY / "recipes" / "quickstart.yaml")


def test_this_machine_is_looked_at_within_seconds_and_without_torch():
    code = (
        "import sys; from launcher.doctor import main; code = main([]);"
        " print('torch' in sys.modules); sys.exit(code)"
    )
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ended.returncode in (0, 5), ended.stderr  # 5: it may have a fault of its own
    assert ended.stdout.splitlines()[-1] == "False"
    for name in ("GPU", "torch", "memory", "disk", "/dev/shm", "open files", "compiler"):
        assert f"│ {name} " in ended.stdout
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "hosts is not a file (resolved: "),
        ("a slots=0\n", "line 1: slots=0 of a must be a whole number"),
        ("$(touch owned) slots=1\n", "line 1: host '$(touch' must begin with a letter or digit"),
        ("localhost slots=1\n127.0.0.1 slots=1\n", "127.0.0.1 is the same machine as localhost"),
    ],
    ids=["missing", "102", "107", "101"],
)
def test_a_wrong_hostfile_ends_with_2(content, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "hosts").write_text(content)
    assert main(["--hostfile", "hosts"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()


def test_a_recipe_that_cannot_run_here_is_a_fault(tmp_path, capsys):
    assert main([RECIPE, f"model.path={tmp_path / 'none'}"]) == 5
    printed = capsys.readouterr()
    assert "the recipe cannot run here" in printed.out
    assert "a run would fail" in printed.err


def test_a_hostfile_of_this_machine_needs_no_ssh(tmp_path, capsys):
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    arguments = ["--hostfile", str(tmp_path / "hosts"), RECIPE, f"run.output_dir={tmp_path / 'r'}"]
    assert main(arguments) in (0, 5)
    printed = capsys.readouterr()
    assert "localhost" in printed.out
    assert "reach" not in printed.out
    assert not (tmp_path / "r").exists()
