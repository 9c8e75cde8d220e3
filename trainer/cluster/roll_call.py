"""Check before the model loads that all ranks run the same code and recipe on their own devices.

It needs only the process group, so every launcher has it.
"""

import json
import platform
import socket
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.cluster.checks import Check, differences
from trainer.cluster.facts import (
    Gpu,
    NodeFacts,
    code_digest,
    machine_id,
    package_versions,
    recipe_digest,
    shows_text,
)
from trainer.config.sections import RunConfig
from trainer.errors import MachineError
from trainer.processes.distributed import Ranks, agreed

if TYPE_CHECKING:
    from torch import Tensor

_PROBE = ".probe"
_PROBE_SECONDS = 5.0  # a network file system may show a new file late


def call_the_roll(config: RunConfig, ranks: Ranks) -> None:
    """Compare the facts of all ranks; all ranks end alike.

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
    """Every rank must see a file that rank 0 writes into the run folder.

    Args:
        folder: The run folder, which rank 0 has made.
        ranks: All ranks call this together.

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
    ranks_of: dict[str, list[int]] = {}
    for answer in answers:
        facts = NodeFacts.from_json(answer["facts"])
        host = names.setdefault(facts.machine, _new_name(facts.host, names.values()))
        nodes.setdefault(host, facts)
        recipes.setdefault(host, answer["recipe"])
        ranks_of.setdefault(host, []).append(answer["local_rank"])
    checks = differences(nodes, recipes)
    for host, local_ranks in ranks_of.items():
        if len(set(local_ranks)) < len(local_ranks):
            found = f"{len(local_ranks)} ranks with the local ranks {sorted(local_ranks)}"
            remedy = "start every node once: two ranks would share a device"
            checks.append(Check("local ranks", found, "fault", remedy, (host,)))
    return checks


def gather(values: Mapping[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    """Every rank's plain values, in order of rank, on every rank; as JSON, never pickle."""
    import torch
    import torch.distributed as dist

    mine = json.dumps(values).encode()
    longest = torch.tensor(len(mine), device=ranks.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    padded = torch.tensor(list(mine.ljust(int(longest))), dtype=torch.uint8, device=ranks.device)
    everyone: list[Tensor] = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    dist.all_gather(everyone, padded)
    return [json.loads(bytes(row.tolist())) for row in everyone]


def _answer(config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    import torch

    gpus: tuple[Gpu, ...] = ()
    if ranks.device.type == "cuda":
        device = torch.cuda.get_device_properties(ranks.device)
        capability = torch.cuda.get_device_capability(ranks.device)
        gpus = (Gpu(device.name, device.total_memory >> 20, 0, capability, ""),)
    facts = NodeFacts(
        host=socket.gethostname(),
        machine=machine_id(),
        python=platform.python_version(),
        versions=package_versions(),
        code=code_digest(),
        cuda_build=torch.version.cuda or "",
        gpus=gpus,
    )
    return {
        "facts": facts.to_json(),
        "recipe": recipe_digest(config),
        "local_rank": ranks.local_rank,
    }


def _new_name(host: str, taken: Collection[str]) -> str:
    """A host's name, numbered where another machine has the same name."""
    return host if host not in taken else f"{host} ({len(taken) + 1})"
