"""A preset and a run -> a DeepSpeed engine whose every number has one owner."""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.config.recipe import load_preset
from trainer.config.sections import RunConfig
from trainer.engine.optim import build_optimizer
from trainer.errors import ConfigError
from trainer.planning.devices import Device
from trainer.planning.job import Machine

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")  # elements, allocated in full
_GIB = 2**30
_NEVER = 10**9  # steps between DeepSpeed's own prints: the run prints its own


def this_machine(device: torch.device, world_size: int) -> Machine:
    """The machine of the run, as the planner takes it; its peak speed is not known.

    Nodes are taken to hold as many ranks as this one.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size
    num_nodes = max(1, world_size // max(1, int(local)))
    if device.type != "cuda":
        return Machine(None, world_size, num_nodes)
    found = torch.cuda.get_device_properties(device)
    gpu = Device(
        found.name, found.total_memory / _GIB, None, torch.cuda.get_device_capability(device)
    )
    return Machine(gpu, world_size, num_nodes)


def deepspeed_config(
    config: RunConfig, preset_name: str, precision: str, num_trained: int | None = None
) -> dict[str, Any]:
    """The whole DeepSpeed configuration: the preset's ZeRO keys and the run's numbers.

    The loop owns accumulation and the division of the loss, so DeepSpeed is told of one micro-batch
    a step and to leave the boundary to the caller.

    Args:
        config: The run.
        preset_name: Resolved.
        precision: Resolved.
        num_trained: Caps ZeRO 1's and 2's buckets, which a preset sizes for full fine-tuning: 200 M
            elements in bf16 are 400 MB beside the 30 MB of an adapter.
    """
    numbers: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.optim.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optim.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": _NEVER,
    }
    if precision == "bf16":
        numbers["bf16"] = {"enabled": True}
    if precision == "fp16":
        numbers["fp16"] = {"enabled": True, "initial_scale_power": 16}
    preset = load_preset(preset_name)
    zero = preset["zero_optimization"]
    if num_trained is not None and zero["stage"] in (1, 2):
        caps = {key: min(zero[key], num_trained) for key in _BUCKETS if key in zero}
        preset |= {"zero_optimization": zero | caps}
    return preset | numbers


def build_engine(
    model: nn.Module, config: RunConfig, settings: dict[str, Any]
) -> "DeepSpeedEngine":
    """The engine over the model, its optimizer state sharded as the preset says."""
    import deepspeed
    from deepspeed.utils.logging import logger

    logger.setLevel(logging.ERROR)
    optimizer = build_optimizer(model.parameters(), config.optim)  # by shape: before they are cut
    if settings["zero_optimization"]["stage"] == 3:
        _cut_up(model, settings)
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    refuse_16_bit_masters(engine.optimizer.param_groups)
    return engine


def _cut_up(model: nn.Module, settings: dict[str, Any]) -> None:
    """Move a model to the GPUs a parameter at a time, each rank its part.

    `initialize` would move all of it to every GPU first. Buffers are whole everywhere.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    device = torch.device(get_accelerator().current_device_name())
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    deepspeed.zero.Init(module=model, config_dict_or_path=settings)


def refuse_16_bit_masters(groups: Iterable[Mapping[str, Any]]) -> None:
    """Updates below half a unit in the last place of a 16-bit weight would be lost.

    Raises:
        ConfigError: What the optimizer updates is not fp32.
    """
    kinds = {parameter.dtype for group in groups for parameter in group["params"]}
    if kinds - {torch.float32}:
        raise ConfigError(
            f"the optimizer would update weights of {sorted(map(str, kinds))}; take a zero1 or"
            " zero2 preset, which keep fp32 masters, or engine.precision=fp32"
        )


def set_learning_rate(engine: "DeepSpeedEngine", rate: float) -> None:
    """Give every parameter group the rate of the coming update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
