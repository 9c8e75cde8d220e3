"""A preset and a run -> a DeepSpeed engine whose every number has one owner."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.config.machines import Device, Machine
from trainer.config.preset import Preset, load_preset
from trainer.config.sections import RunConfig
from trainer.engine.finite import clip_before_update
from trainer.engine.optim import RATE, build_optimizer, refuse_too_much_paged
from trainer.engine.state import starts
from trainer.errors import ConfigError
from trainer.models.as_saved import cast_to_run
from trainer.planning.host import host_bytes

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")  # elements, allocated in full
_GIB = 2**30
_NEVER = 10**9  # steps between DeepSpeed's own prints: the run prints its own


def this_machine(device: torch.device, world_size: int) -> Machine:
    """The machine of the run, as a recipe is resolved for it; its peak speed is not known.

    Nodes are taken to hold as many ranks as this one.
    """
    from deepspeed.accelerator import get_accelerator

    num_nodes = max(1, world_size // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    has_fp16 = bool(get_accelerator().is_fp16_supported())
    if device.type != "cuda":
        return Machine(None, world_size, num_nodes, has_fp16=has_fp16, host_bytes=host_bytes())
    found = torch.cuda.get_device_properties(device)
    capability = torch.cuda.get_device_capability(device)
    return Machine(
        Device(found.name, found.total_memory / _GIB, None, capability),
        world_size,
        num_nodes,
        has_flash=find_spec("flash_attn") is not None and capability >= (8, 0),
        has_triton=find_spec("triton") is not None,
        has_fp16=has_fp16,
        host_bytes=host_bytes(),
    )


def deepspeed_config(
    config: RunConfig, num_trained: int | None = None, world_size: int = 1
) -> dict[str, Any]:
    """The whole DeepSpeed configuration: the preset's ZeRO keys and the run's numbers.

    The loop owns accumulation and the division of the loss, so DeepSpeed gets one micro-batch a
    step and leaves the boundary to the caller.

    Args:
        num_trained: Caps ZeRO 1's and 2's buckets, which a preset sizes for full fine-tuning: 200 M
            elements in bf16 are 400 MB beside the 30 MB of an adapter.
        world_size: Ranks of the run; some settings clip without DeepSpeed.
    """
    preset = load_preset(config.engine.preset)
    is_ours = preset.stage == 0 and world_size == 1  # `clip_alone`
    is_ours = is_ours or clips_before_update(config, preset)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.optim.micro_rows,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if is_ours else config.optim.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": _NEVER,
    }
    if config.engine.precision == "bf16":
        # Its check reads every gradient and waits for the device; FiniteCheck reads the norm.
        settings["bf16"] = {"enabled": True, "check_grad_overflow": False}
    if config.engine.precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16}
    zero = dict(preset.zero)
    if num_trained is not None and preset.stage in (1, 2):
        zero |= {
            key: min(zero[key], num_trained + num_trained % 2) for key in _BUCKETS if key in zero
        }
    return {**preset.settings, "zero_optimization": zero, **settings}


def clips_before_update(config: RunConfig, preset: Preset) -> bool:
    """Whether `clip_before_update` takes the place of DeepSpeed's clipping.

    fp16's loss scale is divided out with the clipping, an optimizer on the host waits anyway.
    """
    is_on_device = preset.stage in (1, 2) and not preset.is_offloaded
    return is_on_device and config.engine.precision != "fp16" and config.optim.max_grad_norm > 0


def build_engine(
    model: nn.Module, config: RunConfig, settings: dict[str, Any]
) -> "DeepSpeedEngine":
    """The engine over the model, its optimizer state sharded as the preset says."""
    import deepspeed
    from deepspeed.utils.logging import logger

    logger.setLevel(logging.ERROR)
    optimizer = build_optimizer(
        model.named_parameters(), config.optim
    )  # by shape: before they are cut
    if settings["zero_optimization"]["stage"] == 3:
        _cut_up(model, config, settings)
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    refuse_too_much_paged(optimizer, config.optim, engine.device)
    if clips_before_update(config, load_preset(config.engine.preset)):
        clip_before_update(optimizer, engine, config.optim.max_grad_norm)
    refuse_16_bit_masters(engine.optimizer.param_groups)
    for _, start in starts(engine):  # of rank 0, as DeepSpeed does with parameters
        torch.distributed.broadcast(start, 0)
    return engine


class _CastOneByOne(nn.Module):
    """A model whose weights get their dtype in the run when they are asked for.

    Until then they are mapped from their files, so a rank copies one weight at a time.
    """

    def __init__(self, model: nn.Module, config: RunConfig) -> None:
        super().__init__()
        self.model, self.cast = model, cast_to_run(config, model)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters of the model, one after the other."""
        for parameter in self.model.parameters(recurse):
            self.cast(parameter)
            yield parameter


def _cut_up(model: nn.Module, config: RunConfig, settings: dict[str, Any]) -> None:
    """Move a model to the GPUs a parameter at a time, each rank its part.

    `initialize` would move all of it to every GPU first. Buffers are whole everywhere.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    device = torch.device(get_accelerator().current_device_name())
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    deepspeed.zero.Init(module=_CastOneByOne(model, config), config_dict_or_path=settings)


def refuse_16_bit_masters(groups: Iterable[Mapping[str, Any]]) -> None:
    """Updates below half a unit in the last place of a 16-bit weight would be lost."""
    kinds = {parameter.dtype for group in groups for parameter in group["params"]}
    if kinds - {torch.float32}:
        raise ConfigError(
            f"the optimizer would update weights of {sorted(map(str, kinds))}; take a zero1 or"
            " zero2 preset, which keep fp32 masters, or engine.precision=fp32"
        )


def set_learning_rate(engine: "DeepSpeedEngine", rate: float) -> None:
    """Give every parameter group the rate of the coming update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group.get(RATE, 1.0)
