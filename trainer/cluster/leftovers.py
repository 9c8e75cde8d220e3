"""Signal the processes of one run here: python -I - NAME=VALUE MODE SECONDS < leftovers.py.

They are found by what stands in their environment, never by their names: another run, of the same
user and program, is not touched. Standard library only: it is piped to nodes, clone or no clone.

    stop    SIGTERM to the ranks, which save and end, in SECONDS or not
    end     SIGKILL to all, again until none is left or SECONDS are over

Prints one JSON object: {"signalled": ids, "left": ids}.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

RANK_NAMES = (b"RANK=", b"OMPI_COMM_WORLD_RANK=", b"SLURM_PROCID=")  # launchers have none of these
_TICK = 0.2  # seconds


def processes(mark: str, *, ranks_only: bool = False) -> list[int]:
    """Ids of the live processes with NAME=VALUE in their environment, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            entries = (folder / "environ").read_bytes().split(b"\0")  # empty for a zombie
        except OSError:  # ended meanwhile, or of another user
            continue
        is_rank = any(entry.startswith(RANK_NAMES) for entry in entries)
        if mark.encode() in entries and int(folder.name) != os.getpid():
            found += [int(folder.name)] if is_rank or not ranks_only else []
    return found


def send(ids: list[int], number: signal.Signals) -> None:
    """Signal what still lives."""
    for one in ids:
        try:
            os.kill(one, number)
        except OSError:
            continue


def sweep(mark: str, mode: str, seconds: float) -> dict[str, list[int]]:
    """What was signalled, and what is left."""
    deadline = time.monotonic() + seconds
    is_stop = mode == "stop"
    signalled = processes(mark, ranks_only=is_stop)
    if is_stop:
        send(signalled, signal.SIGTERM)
    while (left := processes(mark, ranks_only=is_stop)) and time.monotonic() < deadline:
        if not is_stop:  # launchers stay: the death of one would end ranks that still save
            send(left, signal.SIGKILL)
        time.sleep(_TICK)
    return {"signalled": signalled, "left": left}


if __name__ == "__main__":
    print(json.dumps(sweep(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
