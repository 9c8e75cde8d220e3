"""The cells of a grid, one after the other, each in a process that gives its memory back.

Whether a cell is finished is what its run folder says: launchers end with 0 although ranks were
killed.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.config.preset import ROOT
from trainer.errors import StoppedError
from trainer.sweep.finished import unfinished
from trainer.sweep.grid import Cell

TRAIN = ROOT / "launcher" / "train.py"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_NUM_LINES = 5  # of a failed cell's output
_TAIL_BYTES = 1 << 16
_POLL_SECONDS = 0.2
_ENDING_SECONDS = 35  # DeepSpeed's launcher gives ranks 30 to save


@dataclass(frozen=True)
class Failure:
    """A cell that did not finish.

    Attributes:
        cell: Its name.
        code: Exit code of its process; negative: the signal that ended it.
        lines: The last it printed.
        output: The file that holds all of it.
    """

    cell: str
    code: int
    lines: tuple[str, ...]
    output: Path


class StopSignals:
    """Counts the signals that ask the sweep to stop; they are passed on to the running cell."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._receive)
            for number in _SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN  # under nohup, or a shell's &
        }

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def run_cells(
    cells: Sequence[Cell], recipe: Path, num_gpus: int | None, say: Callable[[str], None]
) -> list[Failure]:
    """Run what is not finished yet; the cells that failed.

    Args:
        cells: In this order.
        recipe: Of all of them.
        num_gpus: Ranks through the deepspeed launcher; None: one process without it.
        say: Takes a line for people.

    Raises:
        StoppedError: A signal came; the running cell has saved.
    """
    failures: list[Failure] = []
    stop = StopSignals()
    try:
        for number, cell in enumerate(cells, start=1):
            where = f"[{number}/{len(cells)}] {cell.name}"
            reason = unfinished(cell)
            if reason is None:
                say(f"{where}: finished before")
                continue
            output = cell.config.output_dir.with_suffix(".txt")
            say(f"{where}: {reason}; runs, prints to {output}")
            started = time.monotonic()
            code = _run(train_command(recipe, cell, num_gpus), output, stop)
            seconds = time.monotonic() - started
            reason = unfinished(cell)
            if reason is None:
                say(f"{where}: finished in {seconds:.0f} s")
            elif not stop.count and code != StoppedError.exit_code:
                lines = last_lines(output) + (reason,) * (code == 0)
                failures.append(Failure(cell.name, code, lines, output))
                say(f"{where}: failed with code {code} after {seconds:.0f} s")
                for line in failures[-1].lines:
                    say(f"    {line}")
            if stop.count or code == StoppedError.exit_code:
                raise StoppedError(f"stopped at {cell.name}; the same command continues")
    finally:
        stop.restore()
    return failures


def train_command(recipe: Path, cell: Cell, num_gpus: int | None) -> list[str]:
    """The arguments of a cell's process: the entry that every run goes through."""
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


def _run(command: Sequence[str], output: Path, stop: StopSignals) -> int:
    """Run to the end, passing signals on; the exit code. What it prints is added to `output`.

    The cell is a process group of its own: a terminal's Ctrl-C reaches the sweep alone, which hands
    on each once, as a second one ends a run without saving.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    num_sent = 0
    while process.poll() is None:
        if stop.count > num_sent:
            num_sent += 1
            _signal_group(process.pid, signal.SIGINT)
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _ENDING_SECONDS  # the launcher ends before its ranks have saved
    while _signal_group(process.pid, 0) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return process.returncode


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group; whether there was one. Number 0 only asks."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
