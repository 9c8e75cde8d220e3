"""Runs the cells of a grid one after the other, each in a process of its own.

The run folder says whether a cell is finished: launchers end with 0 although ranks were killed.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.text import terminal
from trainer.config.preset import ROOT
from trainer.errors import StoppedError
from trainer.processes.signals import receive_stops
from trainer.sweep.finished import finished_result, unfinished
from trainer.sweep.grid import Cell
from trainer.sweep.results import UnfinishedError

TRAIN, SUITE = (ROOT / "launcher" / name for name in ("train.py", "suite.py"))
_NUM_LINES = 5  # of a failed cell's output are shown
_TAIL_BYTES = 1 << 16
_POLL_SECONDS = 0.2
_ENDING_SECONDS = 35  # DeepSpeed's launcher gives ranks 30 to save


@dataclass(frozen=True)
class Failure:
    """A cell that did not finish.

    Attributes:
        code: Exit code of its process; negative: the signal that ended it.
    """

    cell: str
    code: int
    lines: tuple[str, ...]
    output: Path


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the signals that stop the sweep; they are passed on to the running cell."""
    received: list[int] = []
    previous = receive_stops(lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_cells(cells: Sequence[Cell], recipe: Path, num_gpus: int | None) -> list[Failure]:
    """Run the cells that are not finished; returns those that failed.

    Args:
        num_gpus: Ranks through the deepspeed launcher; None: one process without it.

    Raises:
        StoppedError: A signal came; the running cell has saved.
    """
    failures: list[Failure] = []
    with stop_signals() as received:
        for number, cell in enumerate(terminal.tracked(cells, "cells", len(cells)), start=1):
            where = f"[{number}/{len(cells)}] {cell.name}"
            reason, output = unfinished(cell), cell.config.output_dir.with_suffix(".txt")
            if reason is None:
                terminal.say(f"{where}: finished before")
                continue
            terminal.say(f"{where}: {reason}; runs, prints to {output}")
            started = time.monotonic()
            code = _run(train_command(recipe, cell, num_gpus), output, received)
            seconds = time.monotonic() - started
            is_stopped = bool(received) or code == StoppedError.exit_code
            reason = unfinished(cell)
            if reason is None:
                terminal.say(f"{where}: finished in {seconds:.0f} s")
            elif not is_stopped:
                lines = last_lines(output) + (reason,) * (code == 0)
                failures.append(Failure(cell.name, code, lines, output))
                terminal.say(f"{where}: failed with code {code} after {seconds:.0f} s")
                for line in lines:
                    terminal.say(f"    {line}")
            if is_stopped:
                raise StoppedError(f"stopped at {cell.name}; the same command continues")
    return failures


def measure_cells(cells: Sequence[Cell], suites: Sequence[str], data: Path) -> list[Failure]:
    """Measure the finished cells on suites by launcher/suite.py; returns those that failed.

    Suites that a cell has a result of are left out.

    Args:
        suites: Names.
        data: As launcher/suite.py's --data.

    Raises:
        StoppedError: A signal came; the same command goes on.
    """
    failures: list[Failure] = []
    with stop_signals() as received:
        for cell in terminal.tracked(cells, "suites", len(cells)):
            try:
                measured = finished_result(cell).suites
            except UnfinishedError:
                continue
            wanted = [name for name in suites if name not in measured]
            if not wanted:
                continue
            folder = cell.config.output_dir
            terminal.say(f"{cell.name}: {', '.join(wanted)}")
            command = [sys.executable, str(SUITE), str(folder), *wanted, "--data", str(data)]
            code = _run(command, output := folder.with_suffix(".suites.txt"), received)
            if received:
                raise StoppedError(f"stopped at {cell.name}; the same command continues")
            if code:
                failures.append(Failure(f"{cell.name} on suites", code, last_lines(output), output))
    return failures


def train_command(recipe: Path, cell: Cell, num_gpus: int | None) -> list[str]:
    """The command of a cell: launcher/train.py, with num_gpus through the deepspeed launcher."""
    launcher: list[str] = []
    if num_gpus is not None:
        launcher = [
            "-m", "deepspeed.launcher.runner", "--num_gpus", str(num_gpus),
            "--master_port", str(_free_port()),
        ]  # fmt: skip
    return [sys.executable, *launcher, str(TRAIN), str(recipe), *cell.overrides]


def last_lines(output: Path) -> tuple[str, ...]:
    """The last lines a cell printed."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    return tuple(line for line in text.splitlines() if line.strip())[-_NUM_LINES:]


def _run(command: Sequence[str], output: Path, received: Sequence[int]) -> int:
    """Run a command, append what it prints to `output`, and return its exit code.

    Each signal is passed on once, as a second one ends a run without saving. The cell is a process
    group of its own, so that Ctrl-C in a terminal reaches only the sweep.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != terminal.QUIET},
        )  # fmt: skip
    num_sent = 0
    while process.poll() is None:
        if len(received) > num_sent:
            num_sent += 1
            _signal_group(process.pid, signal.SIGINT)
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _ENDING_SECONDS  # the launcher ends before its ranks have saved
    while _signal_group(process.pid, 0) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return process.returncode


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group; returns whether it exists. Number 0 only checks that."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
