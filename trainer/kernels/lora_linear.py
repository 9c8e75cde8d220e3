"""A linear layer with LoRA adapters as one step of autograd (Hu et al. 2021).

    Y = X W' + b + s D(X) A' B',    D: dropout, a mask m / (1 - p)

With G = dL/dY, H = D(X) A' and K = s G B,

    dX = G W + D(K A)        dA = K' D(X)        dB = s G' H

The adapters' term is accumulated into X W' by its GEMM, and K A into G W. Kept for the backward
pass are X, which the layer before holds anyway, m (a byte an element) and H (T x r). Activations
stay in their own dtype: fp32 adapters over a 16-bit base are rounded to it, X is never widened. A
quantised W is decoded for the forward and for the backward pass, and each time freed at once.

T tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class _Settings:
    scale: float
    dropout: float
    is_transposed: bool
    decode: Callable[[Tensor], Tensor] | None


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    dropout: float = 0.0,
    is_transposed: bool = False,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """X W' + b + scale x dropout(X) A' B', with gradients for X, A and B.

    Args:
        x: (..., I) in the dtype of the weight.
        weight: Frozen, (O, I), or (I, O) where is_transposed.
        bias_O: Frozen.
        a_RI, b_OR: Adapters, in the dtype of x or in fp32.
        scale: alpha / r.
        dropout: p of the adapters' input; drawn as torch's dropout draws.
        is_transposed: The layout of GPT-2's Conv1D.
        decode: Of a quantised weight, of any shape and dtype: gives it as above, in x's dtype.
    """
    y_TO: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.shape[-1]),
        weight, bias_O, a_RI, b_OR, _Settings(scale, dropout, is_transposed, decode),
    )  # fmt: skip
    return y_TO.view(*x.shape[:-1], y_TO.shape[1])  # out here: a model may change it in place


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        settings: _Settings,
    ) -> Tensor:
        y_TO = F.linear(x_TI, _rows(weight, settings), bias_O)
        dropped_TI, mask_TI = x_TI, None
        if settings.dropout and len(x_TI):
            dropped_TI, mask_TI = torch.native_dropout(x_TI, settings.dropout, True)
        h_TR = torch.mm(dropped_TI, a_RI.to(x_TI.dtype).t())
        y_TO.addmm_(h_TR, b_OR.to(x_TI.dtype).t(), alpha=settings.scale)
        # Parameters, not views: under ZeRO-3 they are empty until gathered again.
        ctx.save_for_backward(x_TI, weight, a_RI, b_OR, h_TR, mask_TI)
        ctx.settings = settings
        return y_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight, a_RI, b_OR, h_TR, mask_TI = ctx.saved_tensors
        scale, enlarged = ctx.settings.scale, 1 / (1 - ctx.settings.dropout)
        k_TR = torch.mm(g_TO, b_OR.to(g_TO.dtype)).mul_(scale)
        gradient_b = _product(g_TO.t(), h_TR, b_OR.dtype).mul_(scale)
        # fill, not a product with the mask: a CPU would first convert the mask.
        lost_TI = None if mask_TI is None else ~mask_TI
        kept_TI = x_TI if lost_TI is None else x_TI.masked_fill(lost_TI, 0)
        gradient_a = _product(k_TR.t(), kept_TI, a_RI.dtype).mul_(enlarged)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = torch.mm(g_TO, _rows(weight, ctx.settings))
            narrow_RI = a_RI.to(g_TO.dtype)
            if lost_TI is None:
                gradient_x.addmm_(k_TR, narrow_RI)
            else:
                through_TI = torch.mm(k_TR, narrow_RI, out=kept_TI).masked_fill_(lost_TI, 0)
                gradient_x.add_(through_TI, alpha=enlarged)
        return gradient_x, None, None, gradient_a, gradient_b, None


def _rows(weight: Tensor, settings: _Settings) -> Tensor:
    """The weight (O, I)."""
    whole = weight if settings.decode is None else settings.decode(weight)
    return whole.t() if settings.is_transposed else whole


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right in dtype, out of the GEMM's own fp32 accumulator where a GPU has it."""
    if left.dtype != dtype and left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype)
    return torch.mm(left, right).to(dtype)
