"""A model that has learned its answers says them: at validation, in a pipe, in a terminal."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress

import pytest
import yaml
from conftest import REPOSITORY, write_rows
from rank_pool import run_ranks

from launcher.chat import main as chat
from trainer.run_folder.metrics import read_log

PAIRS = [("first?", "alpha beta"), ("other?", "x")]
TALK = [
    {"role": "user", "content": "first?"},
    {"role": "assistant", "content": "alpha beta"},
    {"role": "user", "content": "and then?"},
]


@pytest.fixture(scope="module")
def learned(tiny_model, tmp_path_factory):
    """A run that has two answers by heart, and a third that follows the first."""
    folder = tmp_path_factory.mktemp("learned")
    rows = [{"messages": [
        {"role": "user", "content": question}, {"role": "assistant", "content": answer},
    ]} for question, answer in PAIRS]  # fmt: skip
    rows.append({"messages": [*TALK, {"role": "assistant", "content": "gamma"}]})
    data = str(write_rows(folder / "train.jsonl", rows))
    values = {
        "run": {"output_dir": str(folder / "run"), "seed": 3},
        "model": {"config": str(tiny_model)},
        "task": {"name": "instruction"},
        "data": {
            "train": data, "valid": data, "test": data, "seq_length": 128, "allow_leaks": True,
            "template": "question_answer",
        },
        "tuning": {"method": "full"},
        "optim": {"lr": 1e-2, "warmup_steps": 2, "max_steps": 120, "global_batch_size": 3},
        "eval": {"interval": 120, "prompts": ["first?", TALK, "other?"], "max_new_tokens": 20},
        "log": {"interval": 40, "progress": False, "trackers": []},
        "save": {"interval": 120},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    printed = folder / "printed.txt"
    codes = run_ranks([str(folder / "recipe.yaml")], 1, printed)
    assert codes == [0], printed.read_text()[-3000:]
    assert read_log(folder / "run" / "log.jsonl")[-1]["loss"] < 0.02
    return folder / "run"


def test_samples_are_what_was_learned_and_stop(learned):
    """The end token is the padding token of this tokenizer, and is learned all the same."""
    samples = read_log(learned / "log.jsonl", "sample")
    said = [(row["answer"], row["ended"]) for row in samples]
    assert said == [(" alpha beta", True), (" gamma", True), (" x", True)]


def test_questions_of_a_pipe_are_answered_on_stdout_alone(learned, monkeypatch, capsys):
    given = b"first?\nand then?\n/new\nother?\n/exit\nfirst?\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    assert chat([str(learned / "model")]) == 0
    printed = capsys.readouterr()
    assert printed.out == "alpha beta\ngamma\nx\n"
    assert "device     cpu x 1" in printed.err


@pytest.mark.parametrize("option", ["--tokens=0", "--temperature=-1", "--temperature=nan"])
def test_options_out_of_range_are_refused(option, learned, capsys):
    assert chat([str(learned), option]) == 2
    assert "--tokens is at least 1" in capsys.readouterr().err


def until_asked(screen: int) -> str:
    """What a terminal shows until the program waits for a question."""
    shown, deadline = "", time.monotonic() + 120
    while not shown.endswith("> "):
        ready, _, _ = select.select([screen], [], [], deadline - time.monotonic())
        assert ready, shown
        shown += os.read(screen, 4096).decode()
    return shown


def test_ctrl_c_leaves_a_terminal_as_it_was(learned):
    screen, terminal = pty.openpty()
    modes = termios.tcgetattr(screen)
    command = [sys.executable, str(REPOSITORY / "launcher" / "chat.py"), str(learned)]
    with subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    ) as program:
        try:
            assert "/exit or Ctrl-D leaves" in until_asked(screen)
            os.write(screen, b"first?\n")
            assert "alpha beta\r\n" in until_asked(screen)
            for _ in range(6):  # one that comes just before Python waits for a line is not seen
                program.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    program.wait(15)
                    break
            assert program.returncode == 130
        finally:
            program.kill()
        assert termios.tcgetattr(screen) == modes
    os.close(screen)
    os.close(terminal)
