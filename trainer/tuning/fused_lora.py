"""PEFT's LoRA layer, fused forward and backward, or begun with a part of the base.

Parameters, names and files are PEFT's. Over 4-bit layers: fused_lora_4bit.py.
"""

from collections.abc import Callable
from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from trainer.kernels.lora_linear import lora_linear


class FusedLoraLinear(Linear):  # type: ignore[misc]
    """A drop-in for PEFT's layer over nn.Linear or Conv1D.

    Only a plain layer with one active adapter is fused. PEFT does the rest: merging, disabled or
    several adapters, layers of a type of the model's own. Under ZeRO-3 this forward reads the
    weights, so DeepSpeed gathers them for this layer, in the forward and the backward pass.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        is_transposed = isinstance(base_layer, Conv1D)
        super().__init__(base_layer, adapter_name, is_target_conv_1d_layer=is_transposed, **kwargs)
        self.fan_in_fan_out = is_transposed

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, in the dtype of x."""
        base = self.base_layer
        is_plain = type(base) in (nn.Linear, Conv1D) and x.dtype == base.weight.dtype
        if not is_plain or args or kwargs or not is_single(self):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        return fused_output(self, x, base.bias, is_transposed=self.is_target_conv_1d_layer)


def is_single(layer: Any) -> bool:
    """Whether a LoRA layer adds one plain adapter to its base."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return len(names) == 1 and not (layer.disable_adapters or layer.merged or layer.lora_variant)


def fused_output(
    layer: Any,
    x: Tensor,
    bias: Tensor | None,
    *,
    is_transposed: bool = False,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """What a layer that `is_single` gives, by `lora_linear`."""
    [name] = [name for name in layer.active_adapters if name in layer.lora_A]
    dropout = layer.lora_dropout[name]
    return lora_linear(
        x,
        layer.base_layer.weight,
        bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
        dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0,
        is_transposed,
        decode,
    )


class PartLoraLinear(FusedLoraLinear):
    """PEFT's layer that begins with a part of its base, from `take_start` (tuning/starts.py).

    PEFT takes that part, s B0 A0, out of the base's weight. Here the weight stays, and the output
    loses what the part gives: the same function and the same gradients. A 16-bit weight is not
    rounded again, a quantised one stays as it is, and what is trained is LoRA of rank 2 r on the
    base as it is: [B, -B0] [A; A0].
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, in the dtype of x."""
        output: Tensor = Linear.forward(self, x, *args, **kwargs)
        if self.disable_adapters:
            return output
        assert not self.merged
        (name,) = self.lora_A
        dtype = self.lora_A[name].weight.dtype
        low = linear(x.to(dtype), self.start_A.to(dtype))
        part = linear(low, self.start_B.to(dtype)) * self.scaling[name]
        without: Tensor = output - part.to(output.dtype)
        return without
