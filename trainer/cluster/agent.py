"""The doctor's agent on every node: it reads requests and writes answers, a line of JSON each.

Nothing arrives on the command line, so no shell sees a host name or an argument. Answers begin with
MARK, because a login script may print other lines before them.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from trainer.cluster.facts import (
    ROOT,
    NodeFacts,
    nearest_folder,
    node_facts,
    recipe_digest,
    shows_text,
)
from trainer.config.machines import Device, Machine
from trainer.config.recipe import load_run_config
from trainer.config.sections import RunConfig
from trainer.planning.host import host_line, host_memory
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve
from trainer.processes.hostfile import addresses
from trainer.processes.network import can_bind

MARK = "focaltune-node "
_ROUND_TRIPS = 40
_CHUNK = bytes(1 << 20)
_SEND_SECONDS = 0.4
_CONNECT_SECONDS = 3.0


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until they end; a request that fails is answered with its error."""
    for line in requests:
        request = json.loads(line)
        action = ACTIONS[request.pop("do")]
        try:
            answer = action(**request)
        except (OSError, ValueError) as error:
            answer = {"error": str(error)}
        answers.write(f"{MARK}{json.dumps(answer)}\n")
        answers.flush()


def introduce(
    folder: str,
    hosts: list[str],
    recipe: str | None,
    overrides: list[str],
    port: int | None,
    slots: int | None = None,
    num_ranks: int | None = None,
) -> dict[str, Any]:
    """Facts, digest of the recipe, hosts that are unknown here, whether a port is free.

    Args:
        folder: Where relative paths start.
        recipe, overrides: From the command line; None without a recipe.
        port: The master's port, on the node that will be master; None elsewhere.
        slots: Ranks of this node; None: as many as it has GPUs.
        num_ranks: Of all nodes; None: those of this node.
    """
    problems = []
    if Path(folder).is_dir():
        os.chdir(folder)
    else:
        problems.append(f"the working folder {folder} does not exist")
    digest, run_folder, config = "", None, None
    if recipe is not None:
        try:
            config = load_run_config(Path(recipe), overrides)
            digest, run_folder = recipe_digest(config), config.output_dir
        except ValueError as error:
            problems.append(f"the recipe cannot run here: {error}")
    facts = node_facts(run_folder)
    slots = slots or len(facts.gpus) or 1
    return {
        "facts": asdict(facts),
        "host": _host(config, facts, slots, num_ranks or slots) if config else None,
        "recipe": digest,
        "run_folder": str(run_folder or ""),
        "problems": problems,
        "unknown": [host for host in hosts if not addresses(host)],
        "is_port_free": port is None or can_bind("", port),
    }


def _host(config: RunConfig, facts: NodeFacts, slots: int, num_ranks: int) -> dict[str, Any] | None:
    """Bytes of host memory that the ranks of this node take, and their parts in words."""
    device = None
    if facts.gpus:
        gpu = facts.gpus[0]
        device = Device(gpu.name, gpu.memory_mib / 1024, None, gpu.compute_capability)
    machine = Machine(device, num_ranks, max(1, num_ranks // slots))
    try:
        found = host_memory(resolve(config, read_shape(config), machine))
    except ValueError:  # a fault that the run tells, with its own code
        return None
    return {"bytes": found.total, "line": host_line(found, facts.memory_bytes)}


def look(path: str, text: str) -> dict[str, Any]:
    """Whether this node sees the file that another node wrote into a shared folder."""
    is_writable = os.access(nearest_folder(Path(path).parent), os.W_OK | os.X_OK)
    return {"is_seen": shows_text(Path(path), text, seconds=2.0), "is_writable": is_writable}


def listen() -> dict[str, Any]:
    """Open a port for one caller of `measure`."""
    server = socket.create_server(("", 0))
    server.settimeout(30)
    threading.Thread(target=_echo, args=(server,), daemon=True).start()
    return {"port": server.getsockname()[1]}


def measure(host: str, port: int) -> dict[str, Any]:
    """Latency (half the median round trip) and rate to a node that listens."""
    with socket.create_connection((host, port), timeout=_CONNECT_SECONDS) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(_ROUND_TRIPS):
            started = time.perf_counter()
            link.sendall(b"?")
            link.recv(1)
            trips.append(time.perf_counter() - started)
        started, sent = time.perf_counter(), 0
        while time.perf_counter() - started < _SEND_SECONDS:
            link.sendall(_CHUNK)
            sent += len(_CHUNK)
        link.sendall(b"?")  # answered when everything before it has arrived
        link.recv(1)
        seconds = time.perf_counter() - started
    # seconds there and back -> milliseconds there
    return {"milliseconds": median(trips) * 5e2, "mbit": sent * 8e-6 / seconds}


ACTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "introduce": introduce,
    "look": look,
    "time": lambda: {"time": time.time()},
    "listen": listen,
    "measure": measure,
}


def command() -> list[str]:
    """The command that starts the agent, at the same paths on every node."""
    return [sys.executable, str(ROOT / "launcher" / "doctor.py"), "--node"]


def _echo(server: socket.socket) -> None:
    """Answer every question mark; the zeros between them are payload."""
    with suppress(OSError):  # the caller has ended and reports its own error
        link, _ = server.accept()
        with server, link:
            while received := link.recv(1 << 20):
                link.sendall(b"!" * received.count(b"?"))
