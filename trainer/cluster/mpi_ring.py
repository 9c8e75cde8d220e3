"""Rates and latencies between nodes, measured by MPI: one rank on each node, no torch.

Buffers only, because mpi4py's lower-case calls pickle.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from trainer.cluster.agent import MARK
from trainer.cluster.facts import ROOT

_ROUND_TRIPS = 40
_BYTES = 8 << 20
_ROUNDS = 3
_ANSWER_BYTES = 128


class RingError(Exception):
    """MPI does not start on these nodes."""


def mpirun() -> str | None:
    """The mpirun beside this Python, else the first in PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def ring_command(hosts: Sequence[str]) -> list[str]:
    """The command for one rank on each host; read_hostfile has checked the names."""
    program = mpirun()
    assert program is not None
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [
        program, *as_root, "--bind-to", "none", "-n", str(len(hosts)), "--map-by", "ppr:1:node",
        "--host", ",".join(f"{host}:1" for host in hosts),
        sys.executable, str(ROOT / "launcher" / "doctor.py"), "--ring",
    ]  # fmt: skip


def measure_ring(hosts: Sequence[str], seconds: float) -> dict[str, Any]:
    """Start the ring, a rank on each host; its library, and milliseconds and Mbit/s of each rank.

    Raises:
        RingError: It did not start, not everywhere, or not in `seconds`.
    """
    process = subprocess.Popen(
        ring_command(hosts), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGTERM)  # mpirun ends its daemons on the nodes
        try:
            process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        raise RingError(f"no answer in {seconds:.0f} s") from error
    answers = [line.removeprefix(MARK) for line in said.splitlines() if line.startswith(MARK)]
    if process.returncode or not answers:
        lines = [line.strip(" -") for line in errors.splitlines() if line.strip(" -")]
        raise RingError(lines[0] if lines else f"mpirun ended with code {process.returncode}")
    answer: dict[str, Any] = json.loads(answers[0])
    if answer["size"] != len(hosts):
        raise RingError(
            f"mpi4py counts {answer['size']} rank of {len(hosts)}: mpirun does not belong to its"
            f" library, {answer['library']}"
        )
    return answer


def ring_rank() -> None:
    """The program of every rank: send to the next while receiving from the one before."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    sent, received = memoryview(bytearray(_BYTES)), memoryview(bytearray(_BYTES))

    def seconds_of(num_bytes: int) -> float:
        started = time.perf_counter()
        theirs = [received[:num_bytes], MPI.BYTE]
        world.Sendrecv([sent[:num_bytes], MPI.BYTE], after, 1, theirs, before, 1)
        return time.perf_counter() - started

    latency = median(seconds_of(1) for _ in range(_ROUND_TRIPS))
    world.Barrier()
    seconds = sum(seconds_of(_BYTES) for _ in range(_ROUNDS))
    own = json.dumps([latency * 1e3, _ROUNDS * _BYTES * 8e-6 / seconds]).encode()
    everyone = bytearray(_ANSWER_BYTES * world.size)
    world.Gather([own.ljust(_ANSWER_BYTES), MPI.BYTE], [everyone, MPI.BYTE], root=0)
    if world.rank == 0:
        starts = range(0, len(everyone), _ANSWER_BYTES)
        rates = [json.loads(everyone[start : start + _ANSWER_BYTES]) for start in starts]
        library = MPI.Get_library_version().split(",")[0]
        print(MARK + json.dumps({"size": world.size, "library": library, "rates": rates}))
