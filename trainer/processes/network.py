"""Ports and addresses of this machine, and many hosts at once."""

import socket
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def own_address() -> str:
    """An address at which other nodes reach this one: the first of `hostname -I`, as DeepSpeed."""
    try:
        listed = subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, check=False, timeout=5
        )
        addresses = listed.stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        addresses = []
    return addresses[0] if addresses else socket.gethostname()


def can_bind(address: str, port: int) -> bool:
    """Whether an address or name is this machine's own and the port is free; 0 is any port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store binds
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def at_once(action: Callable[[str], Result], hosts: Iterable[str]) -> dict[str, Result]:
    """Run an action for all hosts at once; host -> its result."""
    names = list(hosts)
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        return dict(zip(names, pool.map(action, names), strict=True))
