"""Facts of one machine or of several -> faults and remedies. Pure functions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.cluster.facts import PACKAGES, NodeFacts

OK, NOTE, WARNING, FAULT = "ok", "note", "warning", "fault"
_GIB, _MIB = 2**30, 2**20
_FIRST_DRIVER = {12: (525, 60), 13: (580, 65)}  # CUDA major -> Linux driver, NVIDIA's release notes
_CUDA_12 = "install torch's CUDA 12.6 build, the last with Volta and Pascal, from PyTorch's index"
_CLOCK_SECONDS = 1.0
_SLOWEST_MBIT = 500.0  # below 1 Gbit/s of Ethernet


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        verdict: ok, note (it decides a choice), warning, or fault (a run would fail).
        remedy: What to do; empty where there is nothing to do.
        hosts: Where; empty for a single machine.
    """

    name: str
    found: str
    verdict: str = OK
    remedy: str = ""
    hosts: tuple[str, ...] = ()


def node_checks(facts: NodeFacts, slots: int | None = None) -> list[Check]:
    """All checks of one machine; it has slots where there is a hostfile."""
    return [
        *_gpu_checks(facts),
        _slots_check(facts, slots),
        _bitsandbytes_check(facts),
        _flash_check(facts),
        *_memory_checks(facts),
        *_limit_checks(facts),
    ]


def architecture_runs(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Whether a torch build holds code for a GPU.

    Machine code (sm_80) runs on the same major version with an equal or higher minor version; with
    a suffix (sm_90a) on that version only; PTX (compute_80) on everything newer (CUDA C++ guide,
    3.1).
    """
    for name in built:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
        if found is None:
            continue
        kind, major, minor, suffix = found[1], int(found[2]), int(found[3]), found[4]
        if suffix:
            fits = capability == (major, minor)
        elif kind == "sm":
            fits = capability[0] == major and capability[1] >= minor
        else:
            fits = capability >= (major, minor)
        if fits:
            return True
    return False


def architecture_check(capability: tuple[int, int], built: Sequence[str]) -> Check:
    """A fault where a torch build holds no code for a GPU."""
    sm = f"sm_{capability[0]}{capability[1]}"
    if architecture_runs(capability, built):
        return Check("architecture", f"{sm} is in this torch build")
    remedy = _CUDA_12 if capability < (7, 5) else "install a torch build that has it"
    found = f"{sm} is not in this torch build ({' '.join(built)})"
    return Check("architecture", found, FAULT, remedy)


def differences(facts: Mapping[str, NodeFacts], recipes: Mapping[str, str]) -> list[Check]:
    """Faults where nodes differ and must not, naming the odd hosts.

    Facts and digests of the recipe, if there is one, are by the hostfile's names.
    """
    versions = {
        package: {host: node.versions.get(package, "-") for host, node in facts.items()}
        for package in PACKAGES
    }
    shared = {
        "python": {host: node.python for host, node in facts.items()},
        **versions,
        "torch's CUDA": {host: node.cuda_build or "none" for host, node in facts.items()},
        "code": {host: node.code for host, node in facts.items()},
        "recipe": dict(recipes),
        "GPUs": {host: gpu_kinds(node) or "none" for host, node in facts.items()},
    }
    remedies = {
        "code": "bring every node to the same commit of this repository",
        "recipe": "give every node the same recipe",
        "GPUs": "ranks wait for the slowest kind: take the nodes of one kind",
    }
    checks = []
    for name, values in shared.items():
        remedy = remedies.get(name, "install constraints.txt on every node")
        checks += [replace(check, remedy=remedy) for check in _odd(name, values)]
    return checks + _aliases(facts)


def link_checks(
    clocks: Mapping[str, float], rates: Mapping[str, tuple[float, float]]
) -> list[Check]:
    """Warnings about clocks (seconds) and links (milliseconds and Mbit/s), by host."""
    checks = [
        Check("clock", f"{offset:+.2f} s from here", WARNING, "let NTP set the clock", (host,))
        for host, offset in clocks.items()
        if abs(offset) > _CLOCK_SECONDS
    ]
    usual = sorted(mbit for _, mbit in rates.values())[len(rates) // 2] if rates else 0.0
    for host, (milliseconds, mbit) in rates.items():
        if mbit < max(_SLOWEST_MBIT, usual / 2):
            found = f"{mbit:,.0f} Mbit/s and {milliseconds:.2f} ms to the next node"
            remedy = "slow for training: is this the intended network interface?"
            checks.append(Check("link", found, WARNING, remedy, (host,)))
    return checks


def gathered(checks: Sequence[Check]) -> list[Check]:
    """Merge equal findings of several hosts, in order of first appearance."""
    hosts: dict[Check, list[str]] = {}
    for check in checks:
        hosts.setdefault(replace(check, hosts=()), []).extend(check.hosts)
    return [replace(check, hosts=tuple(names)) for check, names in hosts.items()]


def _odd(name: str, values: Mapping[str, str]) -> list[Check]:
    """A fault for each value except the most frequent; in a tie, the first counts as usual."""
    counts = Counter(values.values())
    if len(counts) < 2:
        return []
    usual, _ = counts.most_common(1)[0]
    holders = [host for host, value in values.items() if value == usual]
    return [
        Check(
            name,
            f"{value}; {usual} on {', '.join(holders)}",
            FAULT,
            hosts=tuple(host for host, found in values.items() if found == value),
        )
        for value in counts
        if value != usual
    ]


def _aliases(facts: Mapping[str, NodeFacts]) -> list[Check]:
    first: dict[str, str] = {}
    checks = []
    for host, node in facts.items():
        if node.machine in first:
            found = f"the same machine as {first[node.machine]} ({node.host})"
            checks.append(
                Check("name", found, FAULT, "name a machine once, with all its slots", (host,))
            )
        first.setdefault(node.machine, host)
    return checks


def gpu_kinds(facts: NodeFacts) -> str:
    """Names of the GPUs of a machine, each once."""
    return " + ".join(sorted({gpu.name for gpu in facts.gpus}))


def _gpu_checks(facts: NodeFacts) -> list[Check]:
    build = f"{facts.versions.get('torch', '-')}, CUDA {facts.cuda_build or 'none'}"
    if not facts.gpus:
        return [Check("GPU", "none", NOTE, "trains on the CPU"), Check("torch", build)]
    drivers = sorted({gpu.driver for gpu in facts.gpus})
    checks = [
        Check("GPU", f"{len(facts.gpus)} x {gpu_kinds(facts)}"),
        _driver_check(facts, drivers),
    ]
    if not facts.cuda_build:
        remedy = "install torch's CUDA build: pip install torch, or its CUDA 12.6 build on a V100"
        return [*checks, Check("torch", build, FAULT, remedy)]
    checks.append(Check("torch", build))
    capabilities = sorted({gpu.compute_capability for gpu in facts.gpus})
    for capability in capabilities:
        checks.append(architecture_check(capability, facts.architectures))
    older = [f"sm_{major}{minor}" for major, minor in capabilities if major < 8]
    checks.append(
        Check("bf16", f"not on {', '.join(older)}", NOTE, "engine.precision=auto takes fp16")
        if older
        else Check("bf16", "supported")
    )
    busy = [gpu for gpu in facts.gpus if gpu.free_mib < 0.9 * gpu.memory_mib]
    free = min(gpu.free_mib for gpu in facts.gpus)
    found = f"{free / 1024:.1f} GiB free of {facts.gpus[0].memory_mib / 1024:.1f}, the fullest GPU"
    remedy = "another process uses it: nvidia-smi names it" if busy else ""
    return [*checks, Check("GPU memory", found, WARNING if busy else OK, remedy)]


def _driver_check(facts: NodeFacts, drivers: Sequence[str]) -> Check:
    major = int(facts.cuda_build.split(".")[0]) if facts.cuda_build else 0
    needed = _FIRST_DRIVER.get(major, (0, 0))
    version = tuple(int(part) for part in re.findall(r"\d+", drivers[0])[:2])
    if version >= needed:
        return Check("driver", ", ".join(drivers))
    found = f"{drivers[0]}; torch's CUDA {facts.cuda_build} needs {needed[0]}.{needed[1]}"
    return Check("driver", found, FAULT, f"update the driver, or {_CUDA_12}")


def _slots_check(facts: NodeFacts, slots: int | None) -> Check:
    if slots is None:
        return Check("slots", "no hostfile")
    found = f"{slots} in the hostfile, {len(facts.gpus)} GPUs, {facts.num_cores} cores"
    if facts.gpus and slots > len(facts.gpus):
        return Check("slots", found, FAULT, "a rank needs a GPU of its own: lower slots=")
    if not facts.gpus and slots > facts.num_cores:
        return Check("slots", found, WARNING, "ranks share cores: lower slots=")
    return Check("slots", found)


def _bitsandbytes_check(facts: NodeFacts) -> Check:
    version = facts.versions.get("bitsandbytes", "-")
    if version == "-":
        return Check("bitsandbytes", "not installed", WARNING, "qlora and 8-bit AdamW need it")
    oldest = min((gpu.compute_capability for gpu in facts.gpus), default=(99, 0))
    if oldest < (6, 0):
        return Check("bitsandbytes", version, NOTE, "no 4-bit base below sm_60: take lora")
    if oldest < (7, 5):
        return Check("bitsandbytes", version, NOTE, "nf4 and fp4 work, int8 needs sm_75")
    return Check("bitsandbytes", version)


def _flash_check(facts: NodeFacts) -> Check:
    if not facts.has_flash_attention:
        return Check("FlashAttention", "not installed", NOTE, "torch's own attention is taken")
    if any(gpu.compute_capability < (8, 0) for gpu in facts.gpus):
        return Check("FlashAttention", "installed", NOTE, "needs sm_80: torch's own is taken")
    return Check("FlashAttention", "installed")


def _memory_checks(facts: NodeFacts) -> list[Check]:
    memory, shm, disk = facts.free_memory_bytes, facts.free_shm_bytes, facts.free_disk_bytes
    found = f"{disk / _GIB:.1f} GiB free for the run folder"
    free_shm = Check("/dev/shm", f"{shm / _MIB:,.0f} MiB free")
    remedy = "in a container: --shm-size=8g or --ipc=host"
    needs_shm = len(facts.gpus) > 1  # NCCL's buffers between the GPUs of a node
    free = Check("memory", f"{memory / _GIB:.1f} GiB free")
    return [
        _at_least(4 * _GIB, memory, free, "the base is loaded through it"),
        _at_least(5 * _GIB, disk, Check("disk", found), "checkpoints need room", fault=_GIB),
        _at_least(_GIB, shm, free_shm, remedy, fault=60 * _MIB) if needs_shm else free_shm,
    ]


def host_check(needed: float, parts: str, facts: NodeFacts) -> Check:
    """Whether the memory of a node holds what the ranks of a recipe take of it."""
    check = Check("host memory", parts)
    remedy = "fewer slots, no _offload preset, or more memory for the container"
    if facts.memory_bytes and needed > facts.memory_bytes:
        return replace(check, verdict=FAULT, remedy=remedy)
    if needed > facts.free_memory_bytes:
        used = f"{facts.free_memory_bytes / _GIB:.1f} GiB are free now: end what uses the rest"
        return replace(check, verdict=WARNING, remedy=used)
    return check


def _at_least(wanted: int, amount: int, good: Check, remedy: str, fault: int = 0) -> Check:
    """The check itself, a warning below the wanted amount, a fault below `fault`."""
    if amount >= wanted:
        return good
    return replace(good, verdict=FAULT if amount < fault else WARNING, remedy=remedy)


def _limit_checks(facts: NodeFacts) -> list[Check]:
    files, locked = facts.open_files, facts.locked_memory_bytes
    limit = Check("open files", f"{files:,} at most")
    checks = [_at_least(1024, files, limit, "ulimit -n 65536")]
    if facts.has_infiniband and locked != -1:
        found = f"{locked / _MIB:.0f} MiB at most, with InfiniBand"
        checks.append(Check("locked memory", found, WARNING, "ulimit -l unlimited"))
    if facts.has_compiler:
        return [*checks, Check("compiler", "found")]
    if not facts.gpus:
        return [*checks, Check("compiler", "none", NOTE, "nothing here needs one without a GPU")]
    remedy = "Triton's kernels need one: apt-get install gcc python3-dev"
    return [*checks, Check("compiler", "none", FAULT, remedy)]
