"""Signal the processes of one run on this machine: python -I - NAME=VALUE MODE SECONDS < this.

A process belongs to the run if NAME=VALUE is in its environment; its name does not matter, so other
runs of the same user are safe. Standard library only: ssh pipes this file to nodes without a clone.

    stop    SIGTERM to the ranks, which save and end; wait for SECONDS at most
    end     SIGKILL to all processes, repeated until none is left or SECONDS are over

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
    """Ids of the live processes with NAME=VALUE in their environment, without this process."""
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
    """Signal the processes that still live."""
    for one in ids:
        try:
            os.kill(one, number)
        except OSError:
            continue


def signal_run(mark: str, mode: str, seconds: float) -> dict[str, list[int]]:
    """Ids of the processes that were signalled, and of those that are left."""
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
    print(json.dumps(signal_run(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
