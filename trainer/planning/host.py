"""Bytes of host memory of a node, by arithmetic: what its ranks hold while they load and train.

Anonymous memory alone. The pages of the base's files are mapped: all ranks of a node share them,
and the system takes them back where memory is short.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.planning.memory import memory_of, moment_bytes
from trainer.planning.resolved import Resolved

_GIB = 2**30
_LIBRARIES = 0.43 * _GIB  # torch, DeepSpeed, transformers, PEFT, bitsandbytes: measured on a CPU
_CUDA = 1.5 * _GIB  # of the driver and NCCL on the host; assumed, not measured
_AT_A_TIME = 4  # tensors that transformers' threads copy
_IN_TURN = 2  # where each is quantised or cut up: it, and the one before, which malloc may keep
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class HostMemory:
    """Host memory of a node; the parts but `once` are of each of its ranks.

    Attributes:
        loading: Copies of weights on their way to a GPU, and adapters; of random weights all.
        offload: Masters, moments and gradients of an optimizer on the host.
        step: Without a GPU, the peak of a training step.
        once: What one rank holds for all: random weights before they are quantised.
    """

    num_ranks: int
    libraries: float
    loading: float
    offload: float
    step: float
    once: float

    @property
    def total(self) -> float:
        """Of the node. What loads is gone before anything is offloaded."""
        of_rank = self.libraries + self.step + max(self.loading, self.offload)
        return self.num_ranks * of_rank + self.once

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self) | {"total": self.total}


def host_memory(recipe: Resolved) -> HostMemory:
    """What a resolved recipe holds on a node of its machine."""
    machine, preset, shape = recipe.machine, recipe.preset, recipe.shape
    num_ranks = -(-machine.num_ranks // machine.num_nodes)
    if not recipe.on_gpu:
        return HostMemory(
            num_ranks=num_ranks,
            libraries=_LIBRARIES,
            loading=0.0,  # what is loaded is what the step has
            offload=0.0,
            step=memory_of(recipe).total,
            once=0.0,
        )
    is_cut, is_drawn = preset.stage == 3, recipe.config.model.config is not None
    is_quantised = recipe.tuning.base_quant_type is not None
    whole = float(recipe.base_bytes * shape.num_parameters)
    copies = _IN_TURN if is_cut or is_quantised else _AT_A_TIME
    largest = max(
        [one.inputs * one.outputs for one in shape.linears] + [shape.vocabulary * shape.hidden]
    )
    loading = min(whole, copies * largest * recipe.base_bytes)
    if is_drawn and not is_quantised:
        loading = whole
    if recipe.tuning.method != "full":
        loading += 4.0 * recipe.num_trained
    # 4 bytes each of fp32 masters and gradients.
    offloaded = (8.0 * recipe.num_trained + moment_bytes(recipe)) / machine.num_ranks
    return HostMemory(
        num_ranks=num_ranks,
        libraries=_LIBRARIES + _CUDA,
        loading=loading,
        offload=offloaded if preset.is_offloaded else 0.0,
        step=0.0,
        once=whole if is_drawn and is_quantised else 0.0,
    )


def host_line(found: HostMemory, limit_bytes: float | None = None) -> str:
    """The host memory of a node and its parts."""
    parts = {
        "libraries": found.libraries, "step": found.step, "loading": found.loading,
        "offload": found.offload,
    }  # fmt: skip
    shown = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items() if size)
    once = f"; {found.once / _GIB:.2f} once" if found.once else ""
    limit = "" if limit_bytes is None else f" of {limit_bytes / _GIB:.1f}"
    ranks = f"{found.num_ranks} ranks" if found.num_ranks > 1 else "a rank"
    return f"{found.total / _GIB:.2f}{limit} GiB a node, by {ranks} with {shown}{once}"


def too_much(recipe: Resolved) -> str:
    """Why a node's ranks do not fit its host memory, and what to do; empty where they may."""
    limit = recipe.machine.host_bytes
    if limit is None or recipe.shape.doubt:
        return ""
    found = host_memory(recipe)
    if found.total <= limit:
        return ""
    remedies = ["a preset without _offload"] if found.offload else []
    if recipe.on_gpu and recipe.config.model.config is not None:
        remedies.append("model.path, whose files are mapped and not copied")
    remedies.append("fewer ranks a node, or more memory for the container")
    return f"host memory: {host_line(found, limit)} do not fit; take {', or '.join(remedies)}"


def host_bytes() -> int:
    """Memory of this machine, or the less that a container may use."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        allowed = _CGROUP.read_text(encoding="utf-8").strip()
    except OSError:
        return total
    return min(total, int(allowed)) if allowed.isdigit() else total
