"""PEFT's LoRA layer over a 4-bit one of bitsandbytes (Dettmers et al. 2023), fused.

Imported only where a base is quantised.
"""

from copy import copy
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor

from trainer.tuning.fused_lora import fused_output, is_single


class FusedLora4bit(PeftLinear4bit):  # type: ignore[misc]
    """A drop-in for PEFT's layer: merging, disabled or several adapters are PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, in the dtype of x."""
        base = self.base_layer
        is_plain = type(base) is Linear4bit and x.dtype == base.compute_dtype
        if not is_plain or args or kwargs or not is_single(self):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        bias = None if base.bias is None else base.bias.to(x.dtype)
        decode = partial(decoded, state=base.weight.quant_state, dtype=x.dtype)
        return fused_output(self, x, bias, decode=decode)


def decoded(packed: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) of a packed one.

    As one row: bitsandbytes 0.50.2 decodes rows that are not a multiple of 64 wrongly on CPUs with
    AVX512.
    """
    flat = copy(state)
    flat.shape = torch.Size([1, state.shape.numel()])
    whole: Tensor = dequantize_4bit(packed.data, flat)
    return whole.view(state.shape).to(dtype)
