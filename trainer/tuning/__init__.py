"""METHODS: base and settings in, model with its trained parameters out.

A base is a model of transformers, for sequence classification or causal language modelling.
Imports losses/ and the rooms above.
"""

from typing import TYPE_CHECKING

from trainer.config.sections import TuningSection
from trainer.tuning.any_peft import add_peft
from trainer.tuning.bottleneck import add_bottlenecks
from trainer.tuning.peft_layers import add_ia3, add_lora
from trainer.tuning.plain import PlainModel, train_all
from trainer.tuning.ptuning import add_prompt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

METHODS = {
    "full": train_all,
    "lora": add_lora,
    "qlora": add_lora,  # differs in its base
    "ia3": add_ia3,
    "ptuning": add_prompt,
    "adapter_h": add_bottlenecks,
    "adapter_p": add_bottlenecks,
    "parallel": add_bottlenecks,
}


def add_method(base: "PreTrainedModel", tuning: TuningSection) -> "PeftModel | PlainModel":
    """The base under tuning.method: one of METHODS, or PEFT's of that name."""
    return METHODS.get(tuning.method, add_peft)(base, tuning)
