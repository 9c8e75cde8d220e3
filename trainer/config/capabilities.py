"""What cannot run together, in one table, each with what can run instead."""

from collections.abc import Callable
from dataclasses import dataclass

from trainer.config.machines import Device
from trainer.config.methods import BITSANDBYTES, LORA, PREFIXES, WHOLE, choose_lora_backend
from trainer.config.preset import Preset
from trainer.config.sections import RunConfig


@dataclass(frozen=True)
class Limit:
    """A rule: what it refuses, and the message, a format over the values of `refusals`.

    It looks at a recipe whose precision is settled, its preset, and the GPU: None is a CPU.
    """

    refuses: Callable[[RunConfig, Preset, Device | None], bool]
    message: str


STACK_LIMITS = (
    Limit(
        lambda c, preset, _: preset.stage == 0 and c.engine.precision in ("fp16", "bf16"),
        "engine.preset {preset} is ZeRO 0, where DeepSpeed scales {precision} gradients wrongly;"
        " take a zero1 preset, also on one GPU, or engine.precision=fp32",
    ),
    Limit(
        lambda c, preset, _: preset.stage == 3 and c.tuning.base_quant_type is not None,
        "tuning.method {method} with engine.preset {preset}: ZeRO 3 would shard packed weights of a"
        " {quant_type} base away from the scales that decode them; take a zero1 or zero2 preset,"
        " which shard all that is trained, or a base that is not quantised, e.g."
        " tuning.method=lora with ZeRO 3",
    ),
    Limit(
        lambda c, preset, _: preset.stage > 0 and c.optim.optimizer in WHOLE,
        "optim.optimizer {optimizer} with engine.preset {preset}: its update needs whole matrices,"
        " and ZeRO 1 to 3 cut them into flat parts; take a zero0 preset with engine.precision=fp32"
        " (auto does both; model.dtype=bf16 keeps a frozen base small), or optim.optimizer=adamw",
    ),
    Limit(
        lambda c, preset, _: preset.stage == 3 and c.optim.optimizer in BITSANDBYTES,
        "optim.optimizer {optimizer} with engine.preset {preset}: ZeRO 3 keeps the state in pieces"
        " that bitsandbytes' blocks and pages do not follow; take a zero1 or zero2 preset, or"
        " optim.optimizer=adamw",
    ),
    Limit(
        lambda c, *_: c.tuning.method == "ptuning" and c.data.packing,
        "tuning.method ptuning with data.packing=true: virtual tokens come before every function,"
        " and a packed row has no room for them; take data.packing=false, one function a row",
    ),
    Limit(
        lambda c, *_: c.tuning.method in PREFIXES and c.model.gradient_checkpointing,
        "tuning.method {method} with model.gradient_checkpointing=true: transformers drops the keys"
        " and values of the prefix where it computes a layer again; take"
        " model.gradient_checkpointing=false or tuning.method=prompt_tuning",
    ),
    Limit(
        lambda c, *_: c.tuning.variant == "dora" and c.tuning.base_quant_type == "int8",
        "tuning.variant dora with tuning.quant_type int8: bitsandbytes 0.50 finds no scales after"
        " PEFT 0.21 has read the weights, and the first step fails; take tuning.quant_type=nf4",
    ),
    Limit(
        lambda c, *_: (
            c.tuning.method in LORA
            and c.tuning.lora_backend == "fused"
            and choose_lora_backend(c.tuning)[0] == "peft"
        ),
        "tuning.lora_backend fused supports neither tuning.variant dora, nor tuning.peft, nor an"
        " 8-bit base; take auto or peft",
    ),
    Limit(
        lambda c, preset, _: preset.is_offloaded and c.optim.optimizer not in ("adamw", *WHOLE),
        "optim.optimizer {optimizer} with engine.preset {preset}: what is offloaded is updated on"
        " the host, in fp32; take a preset without offload, or optim.optimizer=adamw",
    ),
)
"""Limits of the software on any machine: exit code 2."""

MACHINE_LIMITS = (
    Limit(
        lambda c, _, gpu: c.engine.precision == "bf16" and _older_than(gpu, 8, 0),
        "engine.precision bf16 needs a GPU of sm80 or newer, this one is sm{sm}; take"
        " engine.precision=fp16 (auto does)",
    ),
    Limit(
        lambda c, _, gpu: c.tuning.base_quant_type in ("nf4", "fp4") and _older_than(gpu, 6, 0),
        "tuning.quant_type {quant_type} needs a GPU of sm60 or newer for bitsandbytes, this one is"
        " sm{sm}; take a base that is not quantised, e.g. tuning.method=lora",
    ),
    Limit(
        lambda c, _, gpu: c.tuning.base_quant_type == "int8" and _older_than(gpu, 7, 5),
        "tuning.quant_type int8 needs a GPU of sm75 or newer for bitsandbytes, this one is sm{sm};"
        " take tuning.quant_type=nf4",
    ),
    Limit(
        lambda c, _, gpu: gpu is None and c.optim.optimizer.startswith("paged"),
        "optim.optimizer {optimizer} pages GPU memory to the host, and there is no GPU; take"
        " optim.optimizer=adamw or adamw_8bit",
    ),
)
"""Limits of the machine: exit code 5."""


def refusals(
    limits: tuple[Limit, ...], config: RunConfig, preset: Preset, device: Device | None = None
) -> list[str]:
    """The message of every rule that refuses a recipe; STACK_LIMITS look at no device."""
    major, minor = device.compute_capability if device else (0, 0)
    values = {
        "preset": preset.name,
        "precision": config.engine.precision,
        "method": config.tuning.method,
        "quant_type": config.tuning.base_quant_type,
        "variant": config.tuning.variant,
        "optimizer": config.optim.optimizer,
        "sm": f"{major}{minor}",
    }
    return [
        limit.message.format(**values) for limit in limits if limit.refuses(config, preset, device)
    ]


def _older_than(device: Device | None, major: int, minor: int) -> bool:
    return device is not None and device.compute_capability < (major, minor)
