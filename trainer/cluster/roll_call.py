"""Check before the model loads that all ranks run the same code and recipe on their own devices.

It needs only the process group, so every launcher has it.
"""

import socket
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.cluster.checks import FAULT, Check, differences
from trainer.cluster.facts import Gpu, NodeFacts, common_facts, recipe_digest, shows_text
from trainer.config.sections import RunConfig
from trainer.errors import MachineError
from trainer.processes.distributed import Ranks, agreed, gather

_PROBE = ".probe"
_PROBE_SECONDS = 5.0  # a network file system may show a new file late


def call_the_roll(config: RunConfig, ranks: Ranks) -> None:
    """Compare the facts of all ranks; a fault ends all ranks with the same code.

    Raises:
        MachineError: Facts differ, or ranks share a device; on every rank, naming the hosts.
    """
    if ranks.world_size == 1:
        return
    answers = gather(_answer(config, ranks), ranks)
    if faults := roll_faults(answers):
        lines = [f"{check.name} on {', '.join(check.hosts)}: {check.found}" for check in faults]
        remedies = sorted({check.remedy for check in faults})
        raise MachineError(
            "\n".join(["the nodes do not fit together:", *lines, *remedies])
            + "\nlauncher/doctor.py --hostfile FILE looks at all of them"
        )


def check_shared_folder(folder: Path, ranks: Ranks) -> None:
    """Every rank must see a file that rank 0 writes into the run folder; all ranks call this.

    Raises:
        MachineError: Some do not, naming their hosts; on every rank.
    """
    if ranks.world_size == 1:
        return
    token, probe = uuid.uuid4().hex, folder / _PROBE
    agreed(ranks, lambda: probe.write_text(token, encoding="utf-8") if ranks.is_main else 0)
    answers = gather({"token": token}, ranks)
    is_seen = shows_text(probe, answers[0]["token"], _PROBE_SECONDS)
    seen = gather({"host": socket.gethostname(), "is_seen": is_seen}, ranks)
    if ranks.is_main:
        probe.unlink(missing_ok=True)
    blind = sorted({answer["host"] for answer in seen if not answer["is_seen"]})
    if blind:
        raise MachineError(
            f"run.output_dir {folder} on {', '.join(blind)} is not the folder of rank 0: all nodes"
            " must share it; mount it there, or choose another"
        )


def roll_faults(answers: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Faults of the ranks, from their answers in order of rank."""
    names: dict[str, str] = {}
    nodes: dict[str, NodeFacts] = {}
    recipes: dict[str, str] = {}
    ranks_of: defaultdict[str, list[int]] = defaultdict(list)
    for answer in answers:
        facts = NodeFacts.from_json(answer["facts"])
        is_taken = facts.host in names.values()  # by another machine of the same name
        name = f"{facts.host} ({len(names) + 1})" if is_taken else facts.host
        host = names.setdefault(facts.machine, name)
        nodes.setdefault(host, facts)
        recipes.setdefault(host, answer["recipe"])
        ranks_of[host].append(answer["local_rank"])
    checks = differences(nodes, recipes)
    for host, local_ranks in ranks_of.items():
        if len(set(local_ranks)) < len(local_ranks):
            found = f"{len(local_ranks)} ranks with the local ranks {sorted(local_ranks)}"
            remedy = "start every node once: two ranks would share a device"
            checks.append(Check("local ranks", found, FAULT, remedy, (host,)))
    return checks


def _answer(config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    import torch

    gpus: tuple[Gpu, ...] = ()
    if ranks.device.type == "cuda":
        device = torch.cuda.get_device_properties(ranks.device)
        capability = torch.cuda.get_device_capability(ranks.device)
        gpus = (Gpu(device.name, device.total_memory >> 20, 0, capability, ""),)
    facts = NodeFacts(**common_facts(), cuda_build=torch.version.cuda or "", gpus=gpus)
    recipe = recipe_digest(config)
    return {"facts": asdict(facts), "recipe": recipe, "local_rank": ranks.local_rank}
