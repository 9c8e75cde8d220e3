"""What cannot run together, in one table, each with what can run instead."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """A combination of choices.

    Attributes:
        preset: Name of the DeepSpeed preset.
        zero_stage: Its stage.
        precision: Of training; "auto" where it is not resolved yet.
        method: Of the tuning section.
        quant_type: Of the base; "" where it is not quantised.
        optimizer: Of the optim section.
        device: "cpu" or "cuda"; "" where it is not known.
        compute_capability: Of the GPU, e.g. (7, 5) of a T4; None without one.
        packing: Of the data section.
        variant: Of the tuning section.
        is_offloaded: The preset keeps the optimizer in host memory.
    """

    preset: str
    zero_stage: int
    precision: str
    method: str
    quant_type: str
    optimizer: str
    device: str = ""
    compute_capability: tuple[int, int] | None = None
    packing: bool = False
    variant: str = "plain"
    is_offloaded: bool = False


@dataclass(frozen=True)
class Limit:
    """A rule: what it refuses, and the message, a format over the setup's attributes."""

    refuses: Callable[[Setup], bool]
    message: str


STACK_LIMITS = (
    Limit(
        lambda s: s.zero_stage == 0 and s.precision in ("fp16", "bf16"),
        "engine.preset {preset} is ZeRO 0, where DeepSpeed scales {precision} gradients wrongly;"
        " take a zero1 preset, also on one GPU, or engine.precision=fp32",
    ),
    Limit(
        lambda s: s.zero_stage == 3 and bool(s.quant_type),
        "tuning.method {method} with engine.preset {preset}: ZeRO 3 would shard packed weights of a"
        " {quant_type} base away from the scales that decode them; take a zero1 or zero2 preset,"
        " which shard all that is trained, or a base that is not quantised, e.g."
        " tuning.method=lora with ZeRO 3",
    ),
    Limit(
        lambda s: s.zero_stage == 3 and s.optimizer != "adamw",
        "optim.optimizer {optimizer} with engine.preset {preset}: ZeRO 3 keeps the state in pieces"
        " that bitsandbytes' blocks and pages do not follow; take a zero1 or zero2 preset, or"
        " optim.optimizer=adamw",
    ),
    Limit(
        lambda s: s.method == "ptuning" and s.packing,
        "tuning.method ptuning with data.packing=true: virtual tokens stand before every function,"
        " and a packed row leaves them no room; take data.packing=false, one function a row",
    ),
    Limit(
        lambda s: s.variant == "dora" and s.quant_type == "int8",
        "tuning.variant dora with tuning.quant_type int8: bitsandbytes 0.50 finds no scales after"
        " PEFT 0.21 has read the weights, and the first step fails; take tuning.quant_type=nf4",
    ),
    Limit(
        lambda s: s.is_offloaded and s.optimizer != "adamw",
        "optim.optimizer {optimizer} with engine.preset {preset}: what is offloaded is updated on"
        " the host, in fp32; take a preset without offload, or optim.optimizer=adamw",
    ),
)
"""Of the software, whatever the machine: exit code 2."""

MACHINE_LIMITS = (
    Limit(
        lambda s: s.precision == "bf16" and _older_than(s, 8, 0),
        "engine.precision bf16 needs a GPU of sm80 or newer, this one is sm{sm}; take"
        " engine.precision=fp16 (auto does)",
    ),
    Limit(
        lambda s: s.quant_type in ("nf4", "fp4") and _older_than(s, 6, 0),
        "tuning.quant_type {quant_type} needs a GPU of sm60 or newer for bitsandbytes, this one is"
        " sm{sm}; take a base that is not quantised, e.g. tuning.method=lora",
    ),
    Limit(
        lambda s: s.quant_type == "int8" and _older_than(s, 7, 5),
        "tuning.quant_type int8 needs a GPU of sm75 or newer for bitsandbytes, this one is sm{sm};"
        " take tuning.quant_type=nf4",
    ),
    Limit(
        lambda s: s.device == "cpu" and s.optimizer.startswith("paged"),
        "optim.optimizer {optimizer} pages GPU memory to the host, and there is no GPU; take"
        " optim.optimizer=adamw or adamw_8bit",
    ),
)
"""Of the machine: exit code 5."""


def refusals(setup: Setup, limits: tuple[Limit, ...]) -> list[str]:
    """The message of every rule that refuses a setup."""
    major, minor = setup.compute_capability or (0, 0)
    values = vars(setup) | {"sm": f"{major}{minor}"}
    return [limit.message.format(**values) for limit in limits if limit.refuses(setup)]


def _older_than(setup: Setup, major: int, minor: int) -> bool:
    capability = setup.compute_capability
    return capability is not None and capability < (major, minor)
