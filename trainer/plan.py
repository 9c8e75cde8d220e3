"""A recipe on a machine, before it runs: does it fit, how long does it take, what to change.

Needs neither torch nor weights nor a GPU.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.capabilities import MACHINE_LIMITS, STACK_LIMITS, refusals
from trainer.config import RunConfig
from trainer.data_facts import DataFacts
from trainer.devices import Device
from trainer.errors import ModelError
from trainer.memory import BYTES, FLASH, SEGMENT_SDPA, Job, Memory, memory_of
from trainer.recipe import load_preset, recipe_setup
from trainer.shapes import ModelShape, model_shape
from trainer.targets import num_adapter_parameters

MFU, QUANTISED_MFU = (0.25, 0.45), (0.15, 0.35)
"""Share of the device's peak that training reaches, lowest and highest assumed.

A quantised base is decoded, every weight before it multiplies, twice or three times a step.
"""
_TABLES = ("wte", "embed_tokens", "lm_head")  # modules_to_save that the planner can size
_MOST_ROWS = 4096  # of a micro-batch the search looks at


@dataclass(frozen=True)
class Machine:
    """What a plan is made for; `device` None is this machine's CPU."""

    device: Device | None
    num_ranks: int

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.num_ranks} x {self.device.name if self.device else 'CPU'}"


@dataclass(frozen=True)
class Plan:
    """What a recipe needs on a machine; bytes are of one rank.

    Attributes:
        machine: Its name.
        method: Of tuning.
        memory: Peak of a training step.
        limit_bytes: What the device has; None on a CPU.
        faults: Why it cannot run whatever its memory.
        largest_micro_batch_size: That fits; 0 where none does, None without a limit.
        num_steps: Optimizer steps.
        accumulation: Micro-batches of a rank in a step.
        flops: Of the whole run.
        seconds: Lowest and highest, from `mfu`; None where the device's peak is not known.
        mfu: Share of the peak, lowest and highest assumed.
        step_communication_bytes: Sent by a rank in a step.
        checkpoint_bytes: Of one checkpoint on disk.
        num_trained: Parameters.
        num_parameters: Of the model.
        data: What the data is taken for.
    """

    machine: str
    method: str
    memory: Memory
    limit_bytes: float | None
    faults: tuple[str, ...]
    largest_micro_batch_size: int | None
    num_steps: int
    accumulation: int
    flops: float
    seconds: tuple[float, float] | None
    mfu: tuple[float, float]
    step_communication_bytes: float
    checkpoint_bytes: float
    num_trained: int
    num_parameters: int
    data: DataFacts

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.faults and (
            self.limit_bytes is None or self.memory.total <= self.limit_bytes
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json and plan.json."""
        values = asdict(self)
        values["memory"] = {**self.memory.by_component(), "total": self.memory.total}
        return values | {"fits": self.fits}


def read_shape(config: RunConfig) -> ModelShape:
    """The model's sizes from its config.json.

    Raises:
        ModelError: Not there, no JSON, or a family the planner does not know.
    """
    source = Path(config.model.path or config.model.config or "")
    path = source / "config.json" if source.is_dir() else source
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: the model's config.json is not readable: {error}") from error
    return model_shape(values, is_language=config.is_language)


def job_of(config: RunConfig, shape: ModelShape, machine: Machine, data: DataFacts) -> Job:
    """What the memory of a recipe depends on, every `auto` resolved for a machine."""
    preset = preset_of(config, machine)
    zero = load_preset(preset)["zero_optimization"]
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
        reduce_bucket_size=int(zero.get("reduce_bucket_size", 0)),
        world_size=machine.num_ranks,
        seq_length=config.data.seq_length,
        micro_batch_size=config.optim.micro_batch_size,
        attention=_attention(config, machine),
        checkpointing=config.model.gradient_checkpointing,
        accumulates=data.accumulation(config, machine.num_ranks) > 1,
        on_gpu=machine.device is not None,
    )
    if zero["stage"] == 3:
        return job
    return replace(job, reduce_bucket_size=min(job.reduce_bucket_size, job.num_trained))  # capped


def preset_of(config: RunConfig, machine: Machine) -> str:
    """The preset, auto resolved."""
    if config.engine.preset != "auto":
        return config.engine.preset
    return "gpu_zero1" if machine.device else "cpu_zero1"


def precision_of(config: RunConfig, machine: Machine, zero_stage: int) -> str:
    """The precision of training, auto resolved."""
    if config.engine.precision != "auto":
        return config.engine.precision
    return machine.device.precision if machine.device and zero_stage else "fp32"


def make_plan(config: RunConfig, shape: ModelShape, machine: Machine, data: DataFacts) -> Plan:
    """The whole plan of a recipe on a machine."""
    job = job_of(config, shape, machine, data)
    limit = machine.device.memory_gib * 2**30 if machine.device else None
    num_steps = data.num_steps(config)
    flops = flops_of_step(config, job, data) * num_steps
    mfu = QUANTISED_MFU if job.quant_type else MFU
    return Plan(
        machine=machine.name,
        method=config.tuning.method,
        memory=memory_of(job),
        limit_bytes=limit,
        faults=tuple(_faults(config, job, machine)),
        largest_micro_batch_size=None if limit is None else largest_micro_batch(job, limit),
        num_steps=num_steps,
        accumulation=data.accumulation(config, machine.num_ranks),
        flops=flops,
        seconds=_seconds(flops, mfu, machine),
        mfu=mfu,
        step_communication_bytes=communication_bytes(
            job, data.accumulation(config, machine.num_ranks)
        ),
        checkpoint_bytes=checkpoint_bytes(job),
        num_trained=job.num_trained,
        num_parameters=shape.num_parameters + _num_added(job),
        data=data,
    )


def largest_micro_batch(job: Job, limit_bytes: float) -> int:
    """The most rows of a micro-batch that fit, by bisection; 0 where one row does not."""
    lowest, highest = 0, _MOST_ROWS
    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        if memory_of(replace(job, micro_batch_size=middle)).total <= limit_bytes:
            lowest = middle
        else:
            highest = middle - 1
    return lowest


def flops_of_step(config: RunConfig, job: Job, data: DataFacts) -> float:
    """Floating-point operations of an optimizer step over all ranks.

    A token costs 2 operations a weight forward, 2 backward through a frozen base, whose weights
    have no gradient, and 2 more where blocks are recomputed; trained weights cost 2 more. Attention
    adds 4 x D x keys a token and layer, forward. P-Tuning's encoder runs once a row: next to
    nothing.
    """
    shape = job.shape
    passes = 3 if job.checkpointing else 2
    trains_base = passes + 1 if job.method == "full" else passes
    adapters = 0 if job.method == "ptuning" else _num_added(job)
    looks_at = job.seq_length
    if job.attention in (SEGMENT_SDPA, FLASH):
        looks_at = min(looks_at, math.ceil(data.tokens_of_function(config)))
    attention = 4 * shape.hidden * looks_at * shape.num_layers
    of_token = (
        trains_base * 2 * shape.num_linear_weights
        + (passes + 1) * 2 * adapters
        + (passes + 1) * attention
    )
    if shape.head != "classes":  # logits and the gradient of their states, once for every token
        products = 3 if job.trains_vocabulary else 2
        of_token += 2 * products * shape.vocabulary * shape.hidden
    return of_token * data.tokens_of_step(config)


def communication_bytes(job: Job, accumulation: int) -> float:
    """Bytes a rank sends in a step, rings all of them.

    ZeRO 0 to 2 sum the gradients (2 (n - 1) / n of their bytes) and spread the updated weights;
    ZeRO 3 also gathers the frozen base for every forward, backward and recomputation.
    """
    share = (job.world_size - 1) / job.world_size
    width = BYTES[job.precision]
    trained = (2 * share + (share if job.zero_stage else 0.0)) * width * job.num_trained
    if job.zero_stage < 3:
        return trained
    base = BYTES[job.base_dtype] * job.shape.num_parameters * share
    return trained + base * accumulation * (3 if job.checkpointing else 2)


def checkpoint_bytes(job: Job) -> float:
    """fp32 weight and two moments of all that is trained; 8-bit moments carry their scales."""
    return (20 if "8bit" in job.optimizer else 12) * job.num_trained


def _is_fused(config: RunConfig) -> bool:
    tuning = config.tuning
    is_plain = tuning.method == "lora" and tuning.base_quant_type is None
    return is_plain and tuning.lora_backend != "peft" and tuning.variant != "dora"


def _num_added(job: Job) -> int:
    """Parameters that the method adds to the model."""
    return 0 if job.method == "full" else num_adapter_parameters(job.shape, job.tuning)


def _attention(config: RunConfig, machine: Machine) -> str:
    if config.model.attention != "auto":
        return config.model.attention
    return "sdpa" if machine.device else SEGMENT_SDPA  # flash_attn may not be installed


def _faults(config: RunConfig, job: Job, machine: Machine) -> Sequence[str]:
    setup = replace(
        recipe_setup(config, preset_of(config, machine), job.precision),
        device="cuda" if machine.device else "cpu",
        compute_capability=machine.device.compute_capability if machine.device else None,
    )
    return [*refusals(setup, STACK_LIMITS), *refusals(setup, MACHINE_LIMITS)]


def _seconds(
    flops: float, mfu: tuple[float, float], machine: Machine
) -> tuple[float, float] | None:
    if machine.device is None or machine.device.peak_tflops is None:
        return None
    peak = machine.device.peak_tflops * 1e12 * machine.num_ranks
    lowest, highest = mfu
    return flops / (peak * highest), flops / (peak * lowest)


def plans_on(
    config: RunConfig,
    shape: ModelShape,
    devices: Mapping[str, Device],
    num_ranks: int,
    data: DataFacts,
) -> list[Plan]:
    """The plan on each device of a table."""
    return [
        make_plan(config, shape, Machine(device, num_ranks), data) for device in devices.values()
    ]
