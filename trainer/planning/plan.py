"""A recipe on a machine, before it runs: does it fit, how long does it take, what to change.

Needs neither torch nor weights nor a GPU.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.architectures.families import model_shape
from trainer.architectures.shapes import NUM_CLASSES, ModelShape
from trainer.config.machines import Machine
from trainer.config.methods import FLASH, SEGMENT_SDPA, takes_part_of_base
from trainer.config.sections import RunConfig
from trainer.models.files import read_config
from trainer.planning.data_facts import DataFacts, Steps
from trainer.planning.host import HostMemory, host_memory
from trainer.planning.memory import Memory, memory_of, moment_bytes
from trainer.planning.resolved import BYTES, Resolved

MFU, QUANTISED_MFU = (0.25, 0.45), (0.15, 0.35)
"""Share of the device's peak that training reaches, lowest and highest assumed.

A quantised base is decoded, every weight before it multiplies, twice or three times a step.
"""
_MOST_ROWS = 4096  # of a micro-batch the search looks at
_GATHERS = {(True, False): 1.0, (True, True): 1.6, (False, False): 2.0, (False, True): 2.8}
"""Measured gathers of a layer's weights in a micro-batch, by (model stays gathered, recomputation).

It stays gathered below stage3_max_live_parameters; recomputation gathers part of it again.
"""


@dataclass(frozen=True)
class RunPlan:
    """What a recipe needs on a machine; bytes are of one rank, memory is at the peak of a step.

    Attributes:
        limit_bytes: What the device has; None on a CPU.
        faults: Why it cannot run whatever its memory.
        largest_micro_batch_size: That fits; 0 where none does, None without a limit.
        seconds: Lowest and highest, from `mfu`; None where the device's peak is not known.
        mfu: Share of the peak, lowest and highest assumed.
        doubt: Why the memory is a rule of thumb or not known.
        host: Host memory of a node.
        host_limit_bytes: What a node has; None where it is not known.
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
    doubt: str
    host: HostMemory
    host_limit_bytes: float | None

    @property
    def fits(self) -> bool:
        """Whether it can run; what is not known may."""
        return not self.faults and (
            self.limit_bytes is None or self.memory.total <= self.limit_bytes
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json and plan.json."""
        values = asdict(self)
        values["memory"] = {**self.memory.by_component(), "total": self.memory.total}
        values["host"] = self.host.to_json()
        return values | {"fits": self.fits}


def read_shape(config: RunConfig, num_classes: int = NUM_CLASSES) -> ModelShape:
    """The model's sizes from its config.json, of a classifier with so many classes.

    Raises:
        ModelError: Not there, not JSON, or a model that transformers does not build.
    """
    return model_shape(
        read_config(config.model),
        is_language=config.is_language,
        pooling=config.model.pooling,
        method=config.tuning.method,
        num_classes=num_classes,
    )


def make_plan(recipe: Resolved, data: DataFacts) -> RunPlan:
    """Plan a resolved recipe."""
    config, machine = recipe.config, recipe.machine
    steps = data.steps(config.data, config.optim, machine.num_ranks)
    recipe = replace(recipe, accumulation=steps.accumulation)
    limit = machine.memory_bytes
    flops = flops_of_step(recipe, steps) * steps.num
    mfu = QUANTISED_MFU if config.tuning.base_quant_type else MFU
    return RunPlan(
        machine=machine.name,
        method=config.tuning.method,
        memory=memory_of(recipe),
        limit_bytes=limit,
        faults=tuple(line for fault in recipe.faults for line in str(fault).splitlines()),
        largest_micro_batch_size=None if limit is None else largest_micro_batch(recipe, limit),
        num_steps=steps.num,
        accumulation=steps.accumulation,
        flops=flops,
        seconds=_seconds(flops, mfu, machine),
        mfu=mfu,
        step_communication_bytes=communication_bytes(recipe, steps.accumulation),
        checkpoint_bytes=checkpoint_bytes(recipe),
        num_trained=recipe.num_trained,
        num_parameters=recipe.shape.num_parameters + _num_added(recipe),
        data=data,
        doubt=recipe.shape.doubt,
        host=host_memory(recipe),
        host_limit_bytes=machine.host_bytes,
    )


def largest_micro_batch(recipe: Resolved, limit_bytes: float) -> int:
    """The most rows of a micro-batch that fit, by bisection; 0 where one row does not."""
    lowest, highest = 0, _MOST_ROWS
    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        if memory_of(recipe.changed("optim", micro_batch_size=middle)).total <= limit_bytes:
            lowest = middle
        else:
            highest = middle - 1
    return lowest


def flops_of_step(recipe: Resolved, steps: Steps) -> float:
    """Floating-point operations of an optimizer step over all ranks.

    A token costs 2 operations a weight forward, 2 backward through a frozen base, whose weights
    have no gradient, and 2 more where blocks are recomputed; trained weights cost 2 more. Attention
    adds 4 x D x keys a token and layer, forward. P-Tuning's encoder runs once a row: next to
    nothing.
    """
    shape = recipe.shape
    passes = 3 if recipe.config.model.gradient_checkpointing else 2
    trains_base = passes + 1 if recipe.tuning.method == "full" else passes
    adapters = 0 if recipe.tuning.method == "ptuning" else _num_added(recipe)
    looks_at = recipe.config.data.seq_length
    if recipe.config.model.attention in (SEGMENT_SDPA, FLASH):
        looks_at = min(looks_at, math.ceil(steps.tokens_of_record))
    attention = 4 * shape.hidden * looks_at * shape.num_layers
    of_token = (
        trains_base * 2 * shape.num_used_weights
        + (passes + 1) * 2 * adapters
        + (passes + 1) * attention
    )
    if shape.head != "classes":  # logits and the gradient of their states, once for every token
        products = 3 if recipe.trains_vocabulary else 2
        of_token += 2 * products * shape.vocabulary * shape.hidden
    return of_token * steps.tokens


def communication_bytes(recipe: Resolved, accumulation: int) -> float:
    """Bytes a rank sends in a step, rings all of them: (n - 1) / n of what n ranks gather.

    Gradients are all-reduced (twice that share) once a step, by ZeRO 2 at every micro-batch;
    updated weights are gathered once. ZeRO 3 scatters gradients and gathers the model at every
    micro-batch: embeddings once, the layers' weights as often as `_GATHERS` says.
    benchmarks/communication.py compares with what DeepSpeed sends.
    """
    share = (recipe.machine.num_ranks - 1) / recipe.machine.num_ranks
    dtype = recipe.preset.communication_dtype or recipe.config.engine.precision
    gradients = BYTES[dtype] * recipe.num_trained * share
    weights = recipe.train_bytes * recipe.num_trained * share
    if recipe.preset.stage < 3:
        num_reductions = accumulation if recipe.preset.stage == 2 else 1
        return 2 * gradients * num_reductions + (weights if recipe.preset.stage else 0.0)
    is_kept = recipe.shape.num_parameters <= recipe.preset.live_parameters
    layers = recipe.shape.num_linear_weights
    once = recipe.shape.num_parameters - layers
    times = _GATHERS[is_kept, recipe.config.model.gradient_checkpointing]
    gathered = recipe.base_bytes * share * (once + times * layers)
    return (gradients + weights + gathered) * accumulation


def checkpoint_bytes(recipe: Resolved) -> float:
    """fp32 weight and moments of all that is trained; 8-bit moments are fp32, with their scales."""
    optimizer = recipe.config.optim.optimizer
    starts = 4 * recipe.num_adapted if takes_part_of_base(recipe.tuning) else 0
    if "8bit" in optimizer:
        return (12 if "lion" in optimizer else 20) * recipe.num_trained + starts
    return 4 * recipe.num_trained + moment_bytes(recipe) + starts


def _num_added(recipe: Resolved) -> int:
    """Parameters that the method adds to the model."""
    if recipe.tuning.method == "full":
        return 0
    return recipe.num_adapted


def _seconds(
    flops: float, mfu: tuple[float, float], machine: Machine
) -> tuple[float, float] | None:
    if machine.device is None or machine.device.peak_tflops is None:
        return None
    peak = machine.device.peak_tflops * 1e12 * machine.num_ranks
    lowest, highest = mfu
    return flops / (peak * highest), flops / (peak * lowest)
