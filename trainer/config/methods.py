"""Names of methods and back ends, and what a recipe says of them before any model is known."""

import math
import re
from typing import Any

from trainer.config.sections import TuningSection

LORA = ("lora", "qlora")
SEGMENT_SDPA, FLASH, EAGER = "segment_sdpa", "flash_attention_2", "eager"  # of model.attention
TORCH_VARLEN, TORCH_EFFICIENT = "torch_varlen", "torch_efficient"
BY_RECORD = (SEGMENT_SDPA, FLASH, TORCH_VARLEN, TORCH_EFFICIENT)  # their cost follows the records
BOTTLENECKS = ("adapter_h", "adapter_p", "parallel")
PREFIXES = ("prefix_tuning", "cartridge")  # virtual tokens as keys and values of every layer
PROMPTS = ("prompt_tuning", *PREFIXES)  # PEFT's with virtual tokens, beside our ptuning
BITSANDBYTES = (
    "adamw_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "lion",
    "lion_8bit",
)  # of optim.optimizer
WHOLE = ("muon", "adafactor")  # optimizers whose update is not elementwise
PARTS = ("pissa", "olora", "corda", "lora_ga")  # starts of LoRA that take a part of each weight
OF_DATA = ("eva", "corda", "lora_ga")  # starts that look at the training split
START_ARGUMENTS = {  # of a start's own config in PEFT
    "eva_config": ("rho", "whiten", "adjust_scaling_factors"),
    "corda_config": ("corda_method",),
    "lora_ga_config": ("direction", "scale", "stable_gamma"),
}
HEAD = "score"
SCORE_FILE = "score.safetensors"  # the head where transformers has no class with it
_SIZES = {"ptuning": 30, "adapter_h": 256, "adapter_p": 256, "parallel": 256}  # Astraios


def adapter_size(tuning: TuningSection) -> int:
    """Inner width of bottleneck adapters, virtual tokens of P-Tuning; 0 for other methods."""
    usual = _SIZES.get(tuning.method, 0)
    return usual if tuning.adapter_size is None or not usual else tuning.adapter_size


def num_virtual_tokens(tuning: TuningSection) -> int:
    """Positions before every function that virtual tokens take."""
    if tuning.method in PROMPTS:
        return int(tuning.peft.get("num_virtual_tokens", _SIZES["ptuning"]))
    return adapter_size(tuning) if tuning.method == "ptuning" else 0


def start_of(tuning: TuningSection) -> str | None:
    """How LoRA begins, where it is drawn before a run: one of PARTS, eva or loftq."""
    start = str(tuning.peft.get("init_lora_weights"))
    start = re.sub(r"^pissa_niter_\d+$", "pissa", start)
    return start if tuning.method in LORA and start in (*PARTS, "eva", "loftq") else None


def takes_part_of_base(tuning: TuningSection) -> bool:
    """Whether LoRA begins with a part of the base's weights, which PEFT takes out of the base."""
    return start_of(tuning) in PARTS


def without_start(tuning: TuningSection) -> dict[str, Any]:
    """tuning.peft, without what says how LoRA is drawn before a run."""
    if start_of(tuning) is None:
        return tuning.peft
    drawn = ("init_lora_weights", *START_ARGUMENTS)
    return {key: value for key, value in tuning.peft.items() if key not in drawn}


def as_plain(tuning: TuningSection) -> TuningSection:
    """What is saved: plain LoRA; of PARTS adapter and negative start, of equal scale."""
    peft = without_start(tuning)
    if not takes_part_of_base(tuning):
        return tuning.model_copy(update={"peft": peft})
    factor = math.sqrt(2) if tuning.variant == "rslora" else 2
    for key, times in (("rank_pattern", 2), ("alpha_pattern", factor)):
        if peft.get(key):
            peft[key] = {name: times * value for name, value in peft[key].items()}
    changed = {"lora_r": 2 * tuning.lora_r, "lora_alpha": factor * tuning.lora_alpha, "peft": peft}
    return tuning.model_copy(update=changed)


def choose_lora_backend(tuning: TuningSection) -> tuple[str, str]:
    """What computes the layers that LoRA adapts, and the reason for it.

    The recipe decides it, so the planner knows it too. Layers of a type of the model's own are
    PEFT's in either case: only the model shows them (tuning/fused_lora.py).
    """
    if tuning.lora_backend == "peft":
        return "peft", "set by the recipe"
    if tuning.peft:
        return "peft", "the fused layer does not know tuning.peft"
    if tuning.variant == "dora":
        return "peft", "the fused layer does not support dora"
    if tuning.base_quant_type == "int8":
        return "peft", "the fused layer does not support an 8-bit base"
    if tuning.base_quant_type is not None:
        return "fused", "4-bit layers: each weight is decoded and freed at once"
    return "fused", "plain linear layers: no fp32 copy of the activations"
