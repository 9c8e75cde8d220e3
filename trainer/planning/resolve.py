"""Every `auto` of a recipe, settled for a machine with its reason."""

import re
from collections.abc import Iterator
from dataclasses import replace

from trainer.architectures.shapes import ModelShape
from trainer.config.capabilities import MACHINE_LIMITS, STACK_LIMITS, refusals
from trainer.config.machines import Machine
from trainer.config.methods import (
    BITSANDBYTES,
    FLASH,
    LORA,
    SEGMENT_SDPA,
    TORCH_EFFICIENT,
    TORCH_VARLEN,
    WHOLE,
    choose_lora_backend,
)
from trainer.config.preset import Preset, load_preset
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError, MachineError, ModelError
from trainer.models.files import too_long
from trainer.planning.added import counted
from trainer.planning.host import too_much
from trainer.planning.memory import memory_of, paged_too_large
from trainer.planning.resolved import Resolved

_GIB = 2**30
_OF_A_GPU, _OF_A_HOST = 0.9, 0.5  # shares of memory that optim.micro_batch_size=auto fills
_FAMILIES = (  # of ds_configs/, by the name the driver gives a GPU
    (r"\bT4\b", "t4"),
    (r"RTX ?4080", "rtx4080"),
    (r"V100", "v100x8"),
    (r"A100", "a100x2"),
    (r"\bH[12]00\b", "h100"),
)
_STAGES = {  # in the order they are tried: each costs more time a step than the one before
    "zero0": "nothing to shard: one rank in fp32",
    "zero1": "shards the optimizer and keeps one all-reduce a step",
    "zero1_offload": "keeps the optimizer on the host, as {peak} of zero1 do not fit {limit}",
    "zero3": "shards the base too, as {peak} of zero1 do not fit {limit}",
    "zero3_offload": "shards the base and keeps the optimizer on the host, as {peak} of zero1 do"
    " not fit {limit}",
}


def resolve(config: RunConfig, shape: ModelShape, machine: Machine) -> Resolved:
    """Settle every `auto` of a recipe; what cannot run is among the faults of the answer."""
    name, why_preset = choose_preset(config, shape, machine)
    preset = load_preset(name)
    precision, why_precision = choose_precision(config, machine, preset)
    attention, why_attention = choose_attention(config, machine, precision)
    backend, why_backend = choose_loss_backend(config, machine)
    settled = config.changed("engine", preset=name, precision=precision)
    settled = settled.changed("model", attention=attention).changed("loss", backend=backend)
    reasons = {
        "engine.precision": why_precision,
        "engine.preset": why_preset,
        "model.attention": why_attention,
        "loss.backend": why_backend,
    }
    if config.tuning.method in LORA:
        lora_backend, reasons["tuning.lora_backend"] = choose_lora_backend(config.tuning)
        settled = settled.changed("tuning", lora_backend=lora_backend)
    faults = tuple(_faults(config, settled, preset, machine))
    if error := too_long(config, shape.positions):
        faults += (error,)
    num_counted = None
    try:
        num_counted, shape = counted(config, shape)
    except ModelError as error:
        faults += (error,)
    found = Resolved(
        config, settled, reasons, preset, shape, machine, faults, num_counted=num_counted
    )
    if config.optim.micro_batch_size == "auto":
        found = found.settled("optim", "micro_batch_size", *choose_micro_batch(found))
    short = [MachineError(why) for why in (too_much(found), paged_too_large(found)) if why]
    return replace(found, faults=(*faults, *short))


def preset_family(machine: Machine) -> str:
    """The machine part of a preset's name."""
    if machine.device is None:
        return "cpu"
    for pattern, family in _FAMILIES:
        if re.search(pattern, machine.device.name):
            several = family == "v100x8" and machine.num_nodes > 1
            return "2x_v100x8" if several else family
    return "gpu"


def choose_preset(config: RunConfig, shape: ModelShape, machine: Machine) -> tuple[str, str]:
    """Name of the preset and the reason for it.

    The machine gives the family. Of its stages the first whose planned peak fits is taken; a step's
    accumulation is assumed, so that neither the data nor the rank decides.
    """
    if config.engine.preset != "auto":
        return config.engine.preset, "set by the recipe"
    family = preset_family(machine)
    where = "" if family == "cpu" else f"for {machine.name}; "
    is_bare = _takes_zero0(config, machine)
    stages = dict(_STAGES)
    if config.optim.optimizer in WHOLE:
        stages["zero0"] = f"optim.optimizer {config.optim.optimizer} needs whole matrices"
    first = f"{family}_zero{0 if is_bare else 1}"
    if machine.device is None or not shape.is_known:
        return first, f"{where}{stages[first.removeprefix(f'{family}_')]}"
    limit = machine.device.memory_gib * _GIB
    peak_of_first = 0.0
    for stage, reason in stages.items():
        name = f"{family}_{stage}"
        preset = load_preset(name)
        if (preset.stage == 0 and not is_bare) or (preset.stage == 3 and machine.num_ranks == 1):
            continue
        tried = resolve(config.changed("engine", preset=name), shape, machine)
        if refusals(STACK_LIMITS, tried.config, preset) or too_much(tried):
            continue
        peak = memory_of(tried).total
        peak_of_first = peak_of_first or peak
        if peak <= limit:
            shown = {"peak": f"{peak_of_first / _GIB:.1f} GiB", "limit": f"{limit / _GIB:.1f}"}
            fits = f" (planned {peak / _GIB:.1f} of {limit / _GIB:.1f} GiB)"
            return name, where + reason.format(**shown) + fits
    return first, (
        f"{where}planned {peak_of_first / _GIB:.1f} GiB, and no stage fits {limit / _GIB:.1f}:"
        " launcher/plan.py says what to change"
    )


def _takes_zero0(config: RunConfig, machine: Machine) -> bool:
    """Whether ZeRO would shard nothing and only cost time, for the same losses to the last digit.

    8-bit moments are not the same: their blocks end with a parameter. Some optimizers need ZeRO 0.
    """
    precision = config.engine.precision
    is_fp32 = precision == "fp32" or (precision == "auto" and machine.device is None)
    optimizer = config.optim.optimizer
    if optimizer in WHOLE:
        return precision in ("auto", "fp32")
    return machine.num_ranks == 1 and is_fp32 and optimizer not in BITSANDBYTES


def choose_precision(config: RunConfig, machine: Machine, preset: Preset) -> tuple[str, str]:
    """The precision of training and the reason for it."""
    if config.engine.precision != "auto":
        return config.engine.precision, "set by the recipe"
    if preset.stage == 0:
        return "fp32", "ZeRO 0 is exact in fp32 only"
    if machine.device is None:
        return "fp32", "CPU"
    if machine.device.precision == "bf16":
        return "bf16", "GPU of sm80 or newer"
    return "fp16", "GPU older than sm80 has no bf16 tensor cores"


def choose_attention(config: RunConfig, machine: Machine, precision: str) -> tuple[str, str]:
    """The attention back end and the reason for it; FlashAttention computes in 16 bit only."""
    if config.model.attention != "auto":
        return config.model.attention, "set by the recipe"
    if machine.device is None:
        return SEGMENT_SDPA, "CPU: its cost follows the examples, not the row"
    if machine.has_flash and precision != "fp32":
        return FLASH, "flash_attn is installed and the GPU is sm80 or newer"
    if precision == "fp32":
        return "sdpa", "GPU in fp32"
    if machine.device.precision == "bf16":
        return TORCH_VARLEN, "torch's own kernel of sm80 and newer: its cost follows the examples"
    return TORCH_EFFICIENT, "torch's own kernel of older GPUs: its cost follows the examples"


def choose_micro_batch(recipe: Resolved) -> tuple[int, str]:
    """Rows of a micro-batch where it is auto, and the reason for them.

    It takes the fewest passes whose planned peak fits nine tenths of a GPU, or a rank's share of
    half the host's memory, and then the fewest rows for as many passes. A batch of rows is shared
    out evenly.
    """
    optim, machine = recipe.config.optim, recipe.machine
    limit, where = None, "nine tenths of the GPU"
    if machine.memory_bytes is not None:
        limit = _OF_A_GPU * machine.memory_bytes
    elif machine.host_bytes:
        ranks = -(-machine.num_ranks // machine.num_nodes)
        limit, where = _OF_A_HOST * machine.host_bytes / ranks, "half of the host"
    if limit is None or recipe.shape.doubt:
        return 1, f"auto: {recipe.shape.doubt or 'the memory of the machine is not known'}"
    most = -(-optim.global_batch_size // machine.num_ranks)
    is_even = optim.batch_unit == "rows" and optim.global_batch_size % machine.num_ranks == 0
    for passes in range(1, most + 1):
        rows = -(-most // passes)
        if is_even and most % passes:
            continue
        if memory_of(recipe.changed("optim", micro_batch_size=rows)).total <= limit:
            return rows, f"auto: the most that fits {where}"
    return 1, f"auto: none fits {where}"


def choose_loss_backend(config: RunConfig, machine: Machine) -> tuple[str, str]:
    """What computes the loss, and the reason for it."""
    wanted = config.loss.backend
    if not config.is_language and wanted in ("auto", "reference"):
        return "reference", "classification: functions x classes, nothing to fuse"
    if wanted == "reference":
        return wanted, "set by the recipe; tokens x vocabulary logits are in memory"
    if wanted != "auto":
        return wanted, "set by the recipe"
    missing = _triton_is_missing(machine)
    return ("torch", missing) if missing else ("triton", "fused kernel on the GPU")


def _triton_is_missing(machine: Machine) -> str:
    """Why the Triton kernel does not run on a machine; empty where it does."""
    if machine.device is None:
        return "Triton kernels need a GPU, the device is cpu"
    if not machine.has_triton:
        return "the triton package is not installed"
    if machine.device.compute_capability < (7, 0):
        return "Triton needs a GPU of sm70 or newer"
    return ""


def _faults(
    written: RunConfig, settled: RunConfig, preset: Preset, machine: Machine
) -> Iterator[ValueError]:
    """Every reason why a resolved recipe cannot run."""
    if settled.engine.precision == "fp16" and not machine.has_fp16:
        yield MachineError("this machine does not compute in fp16; take engine.precision auto")
    if stack := refusals(STACK_LIMITS, settled, preset):
        yield ConfigError("\n".join(stack))
    if hardware := refusals(MACHINE_LIMITS, settled, preset, machine.device):
        yield MachineError("\n".join(hardware))
    can_flash = machine.device is not None and machine.has_flash is not False
    if settled.model.attention == FLASH and not (can_flash and settled.engine.precision != "fp32"):
        yield ModelError(
            "model.attention flash_attention_2 needs the flash_attn package, a GPU of sm80 or"
            " newer and bf16 or fp16; take auto or sdpa"
        )
    backend, missing = written.loss.backend, _triton_is_missing(machine)
    if not written.is_language and backend not in ("auto", "reference"):
        yield ConfigError(
            f"loss.backend {backend} fuses the output layer of a language model into its loss;"
            " task.name classification scores functions x classes: take auto or reference"
        )
    elif backend == "triton" and missing:
        yield ConfigError(f"loss.backend triton: {missing}; take auto or torch")
