"""The training command answers help and bad input at once, from anywhere, without heavy imports."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY
from launched import wait_until

from launcher.command import recipe_parser, run_command
from trainer.errors import ConfigError, DivergedError, MachineError, ModelError, StoppedError

SCRIPT = REPOSITORY / "launcher" / "train.py"
HEAVY = {"torch", "transformers", "deepspeed", "peft", "sklearn", "matplotlib", "datasets"}


@dataclass
class Answer:
    code: int
    out: str
    message: str  # stderr without the log of imports
    imported: set[str]  # top-level names
    seconds: float


def command(*arguments: object, folder: Path = REPOSITORY) -> Answer:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seconds = time.monotonic() - start
    lines = done.stderr.splitlines()
    logged = [line for line in lines if line.startswith("import time:")]
    assert len(logged) > 50  # otherwise the log of imports proves nothing
    return Answer(
        code=done.returncode,
        out=done.stdout,
        message="\n".join(line for line in lines if line not in logged),
        imported={re.split(r"[|.]", line.replace(" ", "").split("|")[-1])[0] for line in logged},
        seconds=seconds,
    )


@pytest.fixture(scope="module")
def link(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("link") / "focal"
    path.symlink_to(SCRIPT)
    return path


@pytest.mark.parametrize("way", ["path-from-the-root", "symlink", "module"])
def test_help_prints_every_section_at_once_without_heavy_imports(way, link):
    arguments, folder = {
        "path-from-the-root": ([SCRIPT], Path("/")),
        "symlink": ([link], link.parent),
        "module": (["-m", "launcher.train"], REPOSITORY),
    }[way]
    answer = command(*arguments, "--help", folder=folder)
    assert (answer.code, answer.message) == (0, "")
    for key in ("run.output_dir = (required)", "optim.lr = 0.0002", "save.keep = 2"):
        assert f"  {key}  " in answer.out
    assert answer.out.startswith("usage: ")
    assert "pydantic" in answer.imported  # the log names packages
    assert not answer.imported & HEAVY
    assert answer.seconds < 2


@pytest.mark.parametrize("seconds", [0, 0.4, 0.8, 1.2, 1.6])
def test_ctrl_c_while_a_run_loads_ends_it_wherever_it_comes(seconds, tiny_recipe, tmp_path):
    """Also in a destructor, which swallows exceptions."""
    loading = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tiny_recipe), f"run.output_dir={tmp_path / 'run'}"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    maps = Path(f"/proc/{loading.pid}/maps")
    wait_until(lambda: "pydantic_core" in maps.read_text(), 60, "a recipe that is read")
    time.sleep(seconds)
    loading.send_signal(signal.SIGINT)
    _, printed = loading.communicate(timeout=60)
    assert loading.returncode == 130, printed
    assert printed == "stopped, nothing saved; the same command starts again or continues\n"


@pytest.mark.parametrize("way", [[SCRIPT], ["-m", "launcher.train"]], ids=["path", "module"])
def test_an_unknown_key_ends_with_code_2_and_the_nearest_key(way, tiny_recipe):
    answer = command(*way, tiny_recipe, "optim.lrr=1")
    assert answer.code == 2
    assert answer.message == "error: unknown key optim.lrr; did you mean 'lr'?"
    assert answer.out == ""
    assert not answer.imported & HEAVY


def test_missing_data_ends_with_code_3_and_the_path_before_anything_heavy(tiny_recipe, tmp_path):
    output = tmp_path / "run"
    answer = command(
        SCRIPT, tiny_recipe, "data.path=nowhere", f"run.output_dir={output}", folder=tmp_path
    )
    assert answer.code == 3
    assert answer.message.startswith(f"error: data.path: {tmp_path}/nowhere does not exist")
    assert "data" in answer.imported  # the reader ran
    assert not answer.imported & HEAVY
    assert not output.exists()
    assert answer.seconds < 2


def test_a_bad_row_ends_with_code_3_and_its_line_before_anything_heavy(tiny_recipe, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"code": "a;", "target": 0}\n{"code": "b;"}\n')
    answer = command(SCRIPT, tiny_recipe, f"data.train={tmp_path}/train.jsonl")
    assert answer.code == 3
    assert answer.message.startswith("error: train.jsonl:2: no field 'target'")
    assert not answer.imported & HEAVY


def test_a_model_folder_without_its_config_ends_with_code_4(tiny_recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    tokenizer = f"data.tokenizer={REPOSITORY}/data/samples/model"
    answer = command(SCRIPT, tiny_recipe, tokenizer, "model.config=empty", folder=tmp_path)
    assert answer.code == 4
    assert f"{tmp_path}/empty/config.json does not exist" in answer.message
    assert not answer.imported & HEAVY


def test_no_recipe_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        recipe_parser("train").parse_args([])
    assert caught.value.code == 2
    assert "required: recipe" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [["--local_rank=1"], ["--local-rank", "1"], []])
def test_the_rank_that_a_launcher_puts_first_is_taken_and_overrides_follow(rank):
    given = recipe_parser("train").parse_args([*rank, "r.yaml", "optim.lr=1", "run.seed=2"])
    assert (given.recipe, given.overrides) == (Path("r.yaml"), ["optim.lr=1", "run.seed=2"])


@pytest.mark.parametrize(
    ("kind", "code", "shown"),
    [
        (ConfigError, 2, "error: why\n"),
        (ModelError, 4, "error: why\n"),
        (MachineError, 5, "error: why\n"),
        (DivergedError, 6, "error: why\n"),
        (StoppedError, 75, "why\n"),  # all is saved: no error
    ],
)
def test_each_error_of_ours_is_one_line_and_its_exit_code(kind, code, shown, capsys, monkeypatch):
    monkeypatch.setattr("launcher.command._offline_and_quiet", lambda: None)

    def fail() -> None:
        raise kind("why")

    assert run_command(fail) == code
    assert capsys.readouterr().err == shown


def test_a_defect_keeps_its_traceback_and_success_is_0(monkeypatch):
    monkeypatch.setattr("launcher.command._offline_and_quiet", lambda: None)

    def fail() -> None:
        raise ValueError("not for the user")

    with pytest.raises(ValueError, match="not for the user"):
        run_command(fail)
    assert run_command(lambda: None) == 0


def test_output_that_nobody_reads_ends_nothing():
    """`prepare.py RECIPE | head`, a killed tee: the command ends with its code."""
    program = (
        "import sys, time; from launcher.command import run_command\n"
        "def work():\n"
        "    for _ in range(50): print('x' * 4000); time.sleep(0.01)\n"
        "    sys.stderr.write('whole'); return 7\n"
        "sys.exit(run_command(work))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        running.stdout.read(10)
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == "whole"
        assert running.wait(30) == 7


def test_another_locale_changes_neither_paths_nor_output(tmp_path):
    recipe = tmp_path / "größe 中.yaml"
    done = subprocess.run(
        [sys.executable, SCRIPT, recipe], capture_output=True, timeout=60, check=False,
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert str(recipe) in done.stderr.decode()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(pty, "fork"), reason="no pseudo-terminals here")
def test_a_closed_terminal_saves_and_ends_with_75(tiny_recipe, tmp_path):
    """SIGHUP, and every write fails from then on."""
    folder = tmp_path / "run"
    words = [SCRIPT, tiny_recipe, f"run.output_dir={folder}", "optim.max_steps=4000"]
    words += ["log.interval=1", "save.interval=4000", "eval.interval=never"]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, *map(str, words)])
    shown = b""
    while b"/4000" not in shown or b"loss" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    (saved,) = (folder / "checkpoints").iterdir()
    assert (saved / "MANIFEST.json").exists()
