"""Signals the processes of a run on all its hosts at once, through ssh that asks no question."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from trainer.cluster.remote import explained, ssh_command
from trainer.processes.network import at_once

_PROGRAM = Path(__file__).with_name("leftovers.py")
_SLACK = 20.0  # seconds for the connection and its end


def signal_hosts(hosts: Iterable[str], mark: str, mode: str, seconds: float) -> dict[str, str]:
    """Run leftovers.py on all hosts; on this machine too with mode "end" or without hosts.

    Args:
        hosts: Names that read_hostfile accepted; none if the run is on this machine only.
        mark: NAME=VALUE in the environment of the run's processes.
        mode: "stop" or "end", see leftovers.py.
        seconds: How long the processes may take.

    Returns:
        Host -> why its processes could not be signalled; empty when all is well.
    """
    arguments = [sys.executable, "-I", "-", mark, mode, f"{seconds:.0f}"]
    commands = {host: ssh_command(host, arguments) for host in hosts}
    if mode == "end" or not commands:  # with "stop" it may be a host: signal its ranks only once
        commands["this machine"] = arguments
    faults = at_once(lambda host: _run(host, commands[host], seconds), commands)
    return {host: fault for host, fault in faults.items() if fault}


def _run(host: str, command: list[str], seconds: float) -> str:
    """Run leftovers.py on a host; the fault and its remedy, or ""."""
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
