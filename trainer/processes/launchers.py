"""The launchers above this process, and whether they are still there."""

import os
import select
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

from psutil import STATUS_ZOMBIE, Error, Process

_PROGRAMS = frozenset({"deepspeed", "mpirun", "prterun", "prted", "orted", "torchrun"})
_MODULES = ("deepspeed.launcher.", "torch.distributed.run", "torch.distributed.launch")
_OURS = tuple(
    str(Path(__file__).resolve().parents[2] / "launcher" / name)
    for name in ("supervise.py", "sweep.py")
)
_WITH_VALUE = ("-X", "-W")  # of Python's own options

Launcher: TypeAlias = Process


def launchers_above() -> list[Launcher]:
    """The launchers of this process, the nearest first; call it at the start, while they live."""
    return nearest_launchers(ancestors())


def nearest_launchers(processes: Sequence[Launcher]) -> list[Launcher]:
    """The launchers among processes, up to the first that is not one."""
    return list(takewhile(lambda one: is_launcher(command_line(one), folder_of(one)), processes))


def ancestors() -> list[Launcher]:
    """The processes above this one, the nearest first; empty where they cannot be read."""
    try:
        found: list[Launcher] = Process().parents()
    except Error:
        return []
    return found


def is_launcher(words: Sequence[str], folder: Path) -> bool:
    """Whether a command line in a working folder starts ranks and has to outlive them."""
    program, *arguments = words or [""]
    if not Path(program).name.startswith("python"):
        return Path(program).name in _PROGRAMS
    for word in (rest := _without_options(arguments)):
        if word == "-m":
            return next(rest, "").startswith(_MODULES)
        return Path(word).name in _PROGRAMS or os.path.realpath(folder / word) in _OURS
    return False


def is_abandoned(above: Sequence[Launcher]) -> bool:
    """True once a launcher has ended, or nobody reads what it and its ranks print."""
    try:
        if not all(one.is_running() and one.status() != STATUS_ZOMBIE for one in above):
            return True
    except Error:
        return True
    printed = select.poll()
    for stream in (1, 2):
        printed.register(stream, 0)  # errors are always reported
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in printed.poll(0))


def _without_options(arguments: Sequence[str]) -> Iterator[str]:
    """The interpreter's words without its options; -c and - are programs without a name."""
    words = iter(arguments)
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif word == "-m" or not word.startswith("-"):
            yield word
        elif word in ("-c", "-"):
            return


def command_line(process: Launcher) -> list[str]:
    """The words of a process; one empty word where they cannot be read."""
    try:
        return process.cmdline() or [""]
    except Error:
        return [""]


def folder_of(process: Launcher) -> Path:
    """The working folder of a process; this one's own where it cannot be read."""
    try:
        return Path(process.cwd())
    except Error:
        return Path()
