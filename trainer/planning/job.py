"""A recipe on a machine, every `auto` resolved: what the planner and the run both ask."""

import re
from dataclasses import dataclass, replace

from trainer.architectures.shapes import ModelShape
from trainer.config.capabilities import STACK_LIMITS, refusals
from trainer.config.recipe import load_preset, recipe_setup
from trainer.config.sections import RunConfig
from trainer.planning.data_facts import DataFacts
from trainer.planning.devices import Device
from trainer.planning.memory import SEGMENT_SDPA, Job, memory_of

_GIB = 2**30
_TABLES = ("wte", "embed_tokens", "lm_head")  # modules_to_save that the planner can size
_FAMILIES = (  # of ds_configs/, by the name the driver gives a GPU
    (r"\bT4\b", "t4"),
    (r"RTX ?4080", "rtx4080"),
    (r"V100", "v100x8"),
    (r"A100", "a100x2"),
    (r"\bH[12]00\b", "h100"),
)
_STAGES = {  # in the order they are tried: each costs more time a step than the one before
    "zero1": "shards the optimizer and keeps one all-reduce a step",
    "zero1_offload": "keeps the optimizer on the host, as {peak} of zero1 do not fit {limit}",
    "zero3": "shards the base too, as {peak} of zero1 do not fit {limit}",
    "zero3_offload": "shards the base and keeps the optimizer on the host, as {peak} of zero1 do"
    " not fit {limit}",
}


@dataclass(frozen=True)
class Machine:
    """What a plan is made for.

    Attributes:
        device: A GPU; None is this machine's CPU.
        num_ranks: Over all nodes.
        num_nodes: That share them out evenly.
    """

    device: Device | None
    num_ranks: int
    num_nodes: int = 1

    @property
    def name(self) -> str:
        """As it is shown."""
        nodes = f" on {self.num_nodes} nodes" if self.num_nodes > 1 else ""
        return f"{self.num_ranks} x {self.device.name if self.device else 'CPU'}{nodes}"


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
        return config.engine.preset, "asked for"
    family = preset_family(machine)
    where = "" if family == "cpu" else f"for {machine.name}; "
    first = f"{family}_zero1"
    if machine.device is None:
        return first, f"{where}{_STAGES['zero1']}"
    limit = machine.device.memory_gib * _GIB
    peak_of_first = 0.0
    for stage, reason in _STAGES.items():
        name = f"{family}_{stage}"
        zero_stage = int(load_preset(name)["zero_optimization"]["stage"])
        if zero_stage == 3 and machine.num_ranks == 1:
            continue
        precision = precision_of(config, machine, zero_stage)
        if refusals(recipe_setup(config, name, precision), STACK_LIMITS):
            continue
        peak = memory_of(_job(config, name, shape, machine, accumulates=True)).total
        peak_of_first = peak_of_first or peak
        if peak <= limit:
            shown = {"peak": f"{peak_of_first / _GIB:.1f} GiB", "limit": f"{limit / _GIB:.1f}"}
            fits = f" (planned {peak / _GIB:.1f} of {limit / _GIB:.1f} GiB)"
            return name, where + reason.format(**shown) + fits
    return first, (
        f"{where}planned {peak_of_first / _GIB:.1f} GiB, and no stage fits {limit / _GIB:.1f}:"
        " launcher/plan.py says what to change"
    )


def job_of(config: RunConfig, shape: ModelShape, machine: Machine, data: DataFacts) -> Job:
    """What the memory of a recipe depends on, every `auto` resolved for a machine."""
    preset, _ = choose_preset(config, shape, machine)
    accumulates = data.accumulation(config, machine.num_ranks) > 1
    return _job(config, preset, shape, machine, accumulates=accumulates)


def precision_of(config: RunConfig, machine: Machine, zero_stage: int) -> str:
    """The precision of training, auto resolved."""
    if config.engine.precision != "auto":
        return config.engine.precision
    return machine.device.precision if machine.device and zero_stage else "fp32"


def _job(
    config: RunConfig, preset: str, shape: ModelShape, machine: Machine, *, accumulates: bool
) -> Job:
    settings = load_preset(preset)
    zero = settings["zero_optimization"]
    precision = precision_of(config, machine, zero["stage"])
    num_trained_whole = sum(
        shape.vocabulary * shape.hidden for name in config.tuning.modules_to_save if name in _TABLES
    )
    job = Job(
        shape=shape,
        method=config.tuning.method,
        quant_type=config.tuning.base_quant_type,
        double_quant=config.tuning.double_quant,
        precision=precision,
        base_dtype=precision if config.model.dtype == "auto" else config.model.dtype,
        tuning=config.tuning,
        is_fused=_is_fused(config),
        num_saved_modules_parameters=num_trained_whole,
        optimizer=config.optim.optimizer,
        zero_stage=zero["stage"],
        is_offloaded="offload_optimizer" in zero,
        communication_dtype=settings.get("communication_data_type"),
        live_parameters=int(zero.get("stage3_max_live_parameters", Job.live_parameters)),
        reduce_bucket_size=int(zero.get("reduce_bucket_size", 0)),
        world_size=machine.num_ranks,
        seq_length=config.data.seq_length,
        micro_batch_size=config.optim.micro_batch_size,
        attention=_attention(config, machine),
        checkpointing=config.model.gradient_checkpointing,
        accumulates=accumulates,
        on_gpu=machine.device is not None,
    )
    if zero["stage"] == 3:
        return job
    return replace(job, reduce_bucket_size=min(job.reduce_bucket_size, job.num_trained))  # capped


def _is_fused(config: RunConfig) -> bool:
    tuning = config.tuning
    is_plain = tuning.method == "lora" and tuning.base_quant_type is None
    return is_plain and tuning.lora_backend != "peft" and tuning.variant != "dora"


def _attention(config: RunConfig, machine: Machine) -> str:
    if config.model.attention != "auto":
        return config.model.attention
    return "sdpa" if machine.device else SEGMENT_SDPA  # flash_attn may not be installed
