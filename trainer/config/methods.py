"""Names of methods and back ends, and what a recipe says of them before any model is known."""

import math
import re

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


def takes_part_of_base(tuning: TuningSection) -> bool:
    """Whether LoRA begins with a part of the base's weights, which PEFT takes out of the base."""
    start = str(tuning.peft.get("init_lora_weights"))
    return tuning.method in LORA and re.fullmatch(r"pissa(_niter_\d+)?|olora", start) is not None


def as_plain(tuning: TuningSection) -> TuningSection:
    """What is saved where `takes_part_of_base`: adapter and negative start, of equal scale."""
    factor = math.sqrt(2) if tuning.variant == "rslora" else 2
    peft = {key: value for key, value in tuning.peft.items() if key != "init_lora_weights"}
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
    if tuning.base_quant_type is not None:
        return "peft", "the fused layer does not support a quantised base"
    return "fused", "plain linear layers: no fp32 copy of the activations"
