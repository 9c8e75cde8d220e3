"""Sweeps over all hosts of a run, side by side, through ssh that never asks and never hangs."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SSH_OPTIONS = (
    "-o", "BatchMode=yes",
    "-o", "ConnectTimeout=5",
    "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3",
)  # fmt: skip
_PROGRAM = Path(__file__).with_name("sweep.py")
_SLACK = 20.0  # seconds for the connection and its end


def sweep_hosts(hosts: Iterable[str], mark: str, mode: str, seconds: float) -> dict[str, str]:
    """Sweep this machine and all hosts.

    Args:
        hosts: Names that read_hostfile accepted; none where the run is on this machine alone.
        mark: NAME=VALUE in the environment of the run's processes.
        mode: "stop" or "end", as sweep.py says.
        seconds: Given to the processes.

    Returns:
        Host -> why it could not be swept; empty when all is well.
    """
    arguments = [sys.executable, "-I", "-", mark, mode, f"{seconds:.0f}"]
    commands = {"this machine": arguments} | {
        # The words after the host go to its shell: quoted, and none of them is the user's.
        host: ["ssh", *SSH_OPTIONS, host, shlex.join(arguments)]
        for host in hosts
    }
    with ThreadPoolExecutor(len(commands)) as pool:
        faults = pool.map(lambda command: _run(command, seconds), commands.values())
    return {host: fault for host, fault in zip(commands, faults, strict=True) if fault}


def _run(command: list[str], seconds: float) -> str:
    """Run a sweep; what went wrong, or ""."""
    try:
        # Up to twice the seconds: processes are asked to save, then killed.
        ended = subprocess.run(
            command, input=_PROGRAM.read_text(encoding="utf-8"), capture_output=True, text=True,
            check=False, timeout=2 * seconds + _SLACK,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "no answer"
    except OSError as error:
        return str(error)
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.strip()]
        return said[-1].strip() if said else f"ssh ended with {ended.returncode}"
    left = json.loads(ended.stdout.splitlines()[-1])["left"]
    return f"processes {left} cannot be ended" if left else ""
