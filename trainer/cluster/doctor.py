"""Check this machine, or all nodes of a hostfile at once, before a run starts."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.text.terminal import step
from trainer.cluster.agent import introduce
from trainer.cluster.checks import (
    FAULT,
    NOTE,
    OK,
    WARNING,
    Check,
    differences,
    gathered,
    host_check,
    link_checks,
    node_checks,
)
from trainer.cluster.facts import NodeFacts, nearest_folder
from trainer.cluster.mpi_ring import RingError, measure_ring, mpirun
from trainer.cluster.remote import NodeError, RemoteNode, ask_all, clock_offset
from trainer.errors import ConfigError
from trainer.processes.hostfile import Node, read_hostfile, refuse_aliases

_ANSWER_SECONDS = 40.0  # a cold import of torch over a network file system
_RING_SECONDS = 10.0


@dataclass
class Examination:
    """What the doctor found.

    Attributes:
        checks: All checks of a single machine; of several, those that are not ok.
        links: Host -> (clock offset in seconds, latency in ms, Mbit/s to the next node).
    """

    checks: list[Check] = field(default_factory=list)
    facts: dict[str, NodeFacts] = field(default_factory=dict)
    links: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    links_by: str = ""
    num_nodes: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class PlannedRun:
    """The run that the doctor checks for, if there is a recipe, and the master's port."""

    recipe: str | None
    overrides: Sequence[str]
    port: int

    def __post_init__(self) -> None:
        """Check the port."""
        if not 0 < self.port < 1 << 16:
            raise ConfigError(f"--master_port must be 1 to 65535, found {self.port}")

    def introduction(
        self,
        hosts: Sequence[str],
        is_master: bool,
        slots: int | None = None,
        num_ranks: int | None = None,
    ) -> dict[str, Any]:
        """The request to a node with so many of all ranks."""
        return {
            "folder": str(Path.cwd()),
            "hosts": list(hosts),
            "recipe": self.recipe,
            "overrides": list(self.overrides),
            "port": self.port if is_master else None,
            "slots": slots,
            "num_ranks": num_ranks,
        }


def examine_machine(planned: PlannedRun) -> Examination:
    """Check this machine."""
    started = time.monotonic()
    answer = introduce(**planned.introduction([], is_master=True))
    facts = NodeFacts.from_json(answer["facts"])
    checks = [*node_checks(facts), *_answer_checks(answer, planned)]
    return Examination(checks, {facts.host: facts}, seconds=time.monotonic() - started)


@step("asking every node")
def examine_cluster(hostfile: Path, planned: PlannedRun) -> Examination:
    """Check every node of a hostfile and collect all faults.

    Raises:
        ConfigError: The hostfile itself is wrong; no node was contacted.
    """
    started = time.monotonic()
    nodes = read_hostfile(hostfile)
    refuse_aliases(hostfile, nodes)
    is_alone = len(nodes) == 1  # DeepSpeed starts a hostfile of one line on this machine
    deadline = started + _ANSWER_SECONDS
    agents = [RemoteNode(node.host, deadline, over_ssh=not is_alone) for node in nodes]
    try:
        found = _examine(nodes, agents, planned)
    finally:
        for agent in agents:
            agent.close()
    if is_alone:
        found.checks += _alone_checks(nodes[0], found)
    found.checks = gathered(found.checks)
    found.seconds = time.monotonic() - started
    return found


def _examine(
    nodes: Sequence[Node], agents: Sequence[RemoteNode], planned: PlannedRun
) -> Examination:
    hosts = [node.host for node in nodes]
    others = hosts if len(hosts) > 1 else []  # nobody else has to know a single node
    num_ranks = sum(node.slots for node in nodes)
    requests = {
        node.host: planned.introduction(others, node.host == hosts[0], node.slots, num_ranks)
        for node in nodes
    }
    answers = ask_all(agents, "introduce", requests)
    found = Examination(num_nodes=len(nodes))
    recipes = {}
    for node in nodes:
        answer = answers[node.host]
        if isinstance(answer, NodeError):
            found.checks.append(Check("reach", answer.found, FAULT, answer.remedy, (node.host,)))
            continue
        facts = NodeFacts.from_json(answer["facts"])
        found.facts[node.host] = facts
        if answer["recipe"]:
            recipes[node.host] = answer["recipe"]
        seen = [*node_checks(facts, node.slots), *_answer_checks(answer, planned)]
        found.checks += [replace(one, hosts=(node.host,)) for one in seen if one.verdict != OK]
    found.checks += differences(found.facts, recipes)
    alive = [agent for agent in agents if agent.host in found.facts]
    if len(alive) > 1:
        run_folders = {answers[agent.host]["run_folder"] for agent in alive}  # type: ignore[index]
        found.checks += _shared_folder_checks(alive, run_folders - {""})
        _measure_links(alive, found)
    return found


def _answer_checks(answer: dict[str, Any], planned: PlannedRun) -> list[Check]:
    checks = [Check("recipe", problem, FAULT) for problem in answer["problems"]]
    if host := answer["host"]:
        facts = NodeFacts.from_json(answer["facts"])
        checks.append(host_check(host["bytes"], host["line"], facts))
    if answer["unknown"]:
        names = ", ".join(answer["unknown"])
        remedy = "correct DNS or /etc/hosts there"
        checks.append(Check("names", f"does not know {names}", FAULT, remedy))
    if not answer["is_port_free"]:
        remedy = f"another run uses it: choose a --master_port other than {planned.port}"
        checks.append(Check("port", f"{planned.port} is in use", FAULT, remedy))
    return checks


def _alone_checks(node: Node, found: Examination) -> list[Check]:
    facts = next(iter(found.facts.values()), None)
    if facts is None or node.host in ("localhost", facts.host, facts.host.split(".")[0]):
        return []
    note = "DeepSpeed starts a hostfile with one node on this machine, whatever its name"
    return [Check("name", f"this machine is {facts.host}", NOTE, note, (node.host,))]


def _shared_folder_checks(agents: Sequence[RemoteNode], run_folders: set[str]) -> list[Check]:
    """Every node must see a file that this machine writes into the run folder."""
    checks = []

    def fault(found: str, remedy: str, *hosts: str) -> None:
        checks.append(Check("run folder", found, FAULT, remedy, hosts))

    for run_folder in sorted(run_folders):
        folder = nearest_folder(Path(run_folder))
        text = uuid.uuid4().hex
        probe = folder / f".focaltune-probe-{text}"
        try:
            probe.write_text(text, encoding="utf-8")
        except OSError as error:
            fault(f"{folder}: {error.strerror}", "choose another run.output_dir")
            continue
        try:
            request = {agent.host: {"path": str(probe), "text": text} for agent in agents}
            answers = ask_all(agents, "look", request)
        finally:
            probe.unlink(missing_ok=True)
        for host, answer in answers.items():
            if isinstance(answer, NodeError) or not answer["is_seen"]:
                remedy = "all nodes must share run.output_dir: mount it, or choose another"
                fault(f"{run_folder} is another folder than here", remedy, host)
            elif not answer["is_writable"]:
                fault(f"{folder} is not writable", "correct its permissions", host)
    return checks


def _measure_links(agents: Sequence[RemoteNode], found: Examination) -> None:
    """Clock, latency and rate of every node to the next, by MPI where it is installed."""
    hosts = [agent.host for agent in agents]
    offsets = {}
    for agent in agents:
        try:
            offsets[agent.host] = clock_offset(agent)
        except NodeError as error:
            found.checks.append(Check("reach", error.found, FAULT, error.remedy, (agent.host,)))
    rates: dict[str, tuple[float, float]] = {}
    if mpirun() and all(one.versions.get("mpi4py", "-") != "-" for one in found.facts.values()):
        try:
            ring = measure_ring(hosts, _RING_SECONDS)
            rates = dict(zip(hosts, map(tuple, ring["rates"]), strict=True))
            found.links_by = f"mpi4py over {ring['library']}"
        except RingError as error:
            remedy = "deepspeed --launcher openmpi will not start either; pdsh does not need it"
            found.checks.append(Check("MPI", str(error), WARNING, remedy))
    if not rates:
        rates = _ring_over_sockets(agents, found)
        found.links_by = "sockets"
    for host in hosts:
        found.links[host] = (offsets.get(host, 0.0), *rates.get(host, (0.0, 0.0)))
    found.checks += link_checks(offsets, rates)


def _ring_over_sockets(
    agents: Sequence[RemoteNode], found: Examination
) -> dict[str, tuple[float, float]]:
    ports = ask_all(agents, "listen", {})
    following = [*agents[1:], agents[0]]
    requests = {
        agent.host: {"host": after.host, "port": answer["port"]}
        for agent, after in zip(agents, following, strict=True)
        if not isinstance(answer := ports[after.host], NodeError)
    }
    callers = [agent for agent in agents if agent.host in requests]
    rates = {}
    for host, answer in ask_all(callers, "measure", requests).items():
        if isinstance(answer, NodeError):
            broken = f"{answer.found} to {requests[host]['host']}"
            remedy = "nodes must reach each other on any port: open the firewall between them"
            found.checks.append(Check("link", broken, FAULT, remedy, (host,)))
        else:
            rates[host] = (answer["milliseconds"], answer["mbit"])
    return rates
