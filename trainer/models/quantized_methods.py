"""Proof, before a base is loaded, that a method of PEFT computes with quantised weights."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.errors import parsing
from trainer.config.methods import PROMPTS
from trainer.config.peft_methods import peft_class
from trainer.config.sections import OWN_METHODS, TuningSection
from trainer.errors import ConfigError
from trainer.models.quantized import decoded_weight, prepare_layers
from trainer.tuning.any_peft import NOT_LINEAR, stirred

if TYPE_CHECKING:
    from peft import PeftConfig

_SIZE = 256
_MOST = {"nf4": 1e-3, "fp4": 1e-3, "int8": 0.05}  # LLM.int8 rounds what it reads, too


class _OneLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        result: Tensor = self.layer(x)
        return result


def prove_quantised(tuning: TuningSection) -> None:
    """Compare a method on one quantised layer with itself on the decoded one.

    Raises:
        ConfigError: PEFT refuses the layer, or computes something else with it.
    """
    if tuning.method in (*OWN_METHODS, *PROMPTS, *NOT_LINEAR):
        return
    kind, quant_type = peft_class(tuning.method), tuning.base_quant_type
    assert kind is not None
    assert quant_type is not None
    what = f"tuning.method {tuning.method} with tuning.quant_type {quant_type}"
    remedy = "take a base that is not quantised (tuning.quant_type=auto), or tuning.method=qlora"
    layer = _quantised(quant_type)
    plain = nn.Linear(_SIZE, _SIZE, bias=False)
    plain.weight.data = decoded_weight(layer)
    settings = {**tuning.peft, "target_modules": ["layer"]}
    with parsing(f"{what}: PEFT has no such layer", ConfigError, remedy):
        found, right = (_output(one, kind(**settings)) for one in (layer, plain))
    difference = float((found - right).norm() / right.norm())
    if not difference <= _MOST[quant_type]:
        raise ConfigError(
            f"{what}: PEFT computes something else than on the decoded weights (relative"
            f" difference {difference:.1e}); {remedy}"
        )


def _quantised(quant_type: str) -> Any:
    import bitsandbytes

    weight = torch.randn(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0)) / 16
    sizes: dict[str, Any] = {"input_features": _SIZE, "output_features": _SIZE, "bias": False}
    layer: Any
    if quant_type == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(**sizes, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(
            **sizes, compute_dtype=torch.float32, quant_type=quant_type
        )
    layer.load_state_dict({"weight": weight})
    layer = layer.to("cpu")
    prepare_layers(layer)
    return layer


def _output(layer: nn.Module, settings: "PeftConfig") -> Tensor:
    """What a layer with acting adapters gives, drawn and moved the same way for any layer."""
    from peft import get_peft_model

    holder: Any = _OneLayer(layer)
    holder.is_loaded_in_8bit = type(layer).__name__ == "Linear8bitLt"
    holder.is_loaded_in_4bit = type(layer).__name__ == "Linear4bit"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(8, _SIZE)
        tuned = get_peft_model(holder, settings)
        with stirred(tuned):
            result: Tensor = tuned(x)
            torch.autograd.backward(result.square().sum())
    return result.detach()
