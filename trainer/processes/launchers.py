"""The launchers above this process, and whether they are still there."""

import os
import select
from collections.abc import Iterator, Sequence
from pathlib import Path

_PROGRAMS = frozenset({"deepspeed", "mpirun", "prterun", "prted", "orted", "torchrun"})
_MODULES = ("deepspeed.launcher.", "torch.distributed.run", "torch.distributed.launch")
_OURS = tuple(
    str(Path(__file__).resolve().parents[2] / "launcher" / name)
    for name in ("supervise.py", "sweep.py")
)
_WITH_VALUE = ("-X", "-W")  # of Python's own options

Launcher = tuple[int, str]  # process id and start time


def launchers(pid: int) -> list[Launcher]:
    """The launchers from a process upwards, the nearest first, up to what is none."""
    found = []
    while pid > 1:
        try:
            parent, started = _parent_and_start(pid)
            if not is_launcher(command_line(pid), folder_of(pid)):
                break
        except OSError:
            break
        found.append((pid, started))
        pid = parent
    return found


def ancestors() -> Iterator[int]:
    """The processes above this one, the nearest first, as far as they can be read."""
    pid = os.getppid()
    while pid > 0:
        try:
            parent, _ = _parent_and_start(pid)
        except OSError:
            return
        yield pid
        pid = parent


def launchers_above() -> list[Launcher]:
    """Those of this process: to be asked for at its beginning, while they live."""
    return launchers(os.getppid())


def is_launcher(words: Sequence[str], folder: Path) -> bool:
    """Whether a command line, given in a folder, starts ranks and has to outlive them."""
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
    for pid, started in above:
        try:
            if _parent_and_start(pid)[1] != started:
                return True
        except OSError:
            return True
    printed = select.poll()
    for stream in (1, 2):
        printed.register(stream, 0)  # errors are reported unasked
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in printed.poll(0))


def _without_options(arguments: Sequence[str]) -> Iterator[str]:
    """The words of an interpreter but its options; -c and - are programs without a name."""
    words = iter(arguments)
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif word == "-m" or not word.startswith("-"):
            yield word
        elif word in ("-c", "-"):
            return


def command_line(pid: int) -> list[str]:
    """The words of a process; one empty word where it has ended or is of another user."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [""]
    return text.rstrip("\0").split("\0")


def folder_of(pid: int) -> Path:
    """Where a process works; this one's own folder where that cannot be read."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return Path()


def _parent_and_start(pid: int) -> Launcher:
    """The parent's id, and the start in clock ticks, which tells a process from a later namesake.

    Raises:
        OSError: It has ended, or is a zombie.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[1]), fields[19]
