"""Sweeps over all hosts of a run, side by side, through ssh that never asks and never hangs."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.cluster.remote import explained

# Never a question, and 15 s of silence are a host that is gone.
SSH_OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=5",
    "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
)  # fmt: skip
_PROGRAM = Path(__file__).with_name("leftovers.py")
_SLACK = 20.0  # seconds for the connection and its end


def sweep_hosts(hosts: Iterable[str], mark: str, mode: str, seconds: float) -> dict[str, str]:
    """Sweep all hosts, and this machine where more than ranks is swept or no host is given.

    Args:
        hosts: Names that read_hostfile accepted; none where the run is on this machine alone.
        mark: NAME=VALUE in the environment of the run's processes.
        mode: "stop" or "end", as leftovers.py says.
        seconds: Given to the processes.

    Returns:
        Host -> why it could not be swept; empty when all is well.
    """
    arguments = [sys.executable, "-I", "-", mark, mode, f"{seconds:.0f}"]
    commands = {
        # The words after the host go to its shell: quoted, and none of them is the user's.
        host: ["ssh", *SSH_OPTIONS, host, shlex.join(arguments)]
        for host in hosts
    }
    if mode == "end" or not commands:  # it may be one of the hosts, whose ranks are asked once
        commands["this machine"] = arguments
    with ThreadPoolExecutor(len(commands)) as pool:
        faults = pool.map(lambda host: _run(host, commands[host], seconds), commands)
    return {host: fault for host, fault in zip(commands, faults, strict=True) if fault}


def _run(host: str, command: list[str], seconds: float) -> str:
    """Run a sweep; what went wrong and what to do, or ""."""
    try:
        ended = subprocess.run(
            command, input=_PROGRAM.read_text(encoding="utf-8"), capture_output=True, text=True,
            check=False, timeout=seconds + _SLACK,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "no answer"
    except OSError as error:
        return str(error)
    if ended.returncode:
        fault = explained(host, ended.stderr, ended.returncode)
        return f"{fault.found}; {fault.remedy}"
    left = json.loads(ended.stdout.splitlines()[-1])["left"]
    return f"processes {left} cannot be ended" if left else ""
