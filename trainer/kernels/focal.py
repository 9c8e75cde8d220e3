"""Focal loss as a function of the negative log-likelihood (Lin et al. 2017, eq. 4).

With l the nll of a row, p = exp(-l) and q = 1 - p,

    FL     = q^gamma l
    dFL/dl = q^gamma (1 + gamma r),    r = l p / q = l / expm1(l), in (0, 1], r(0) = 1

so its gradient is that of cross-entropy times one number a row. For gamma < 1 the pole of
q^(gamma - 1) cancels against r, where autograd through (1 - p) ** gamma gives NaN at p = 1.

T rows: tokens or functions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def focal_value_and_slope(
    nll_T: Tensor, gamma: float, detach_modulator: bool = False
) -> tuple[Tensor, Tensor]:
    """FL and dFL/dl of every row; no graph.

    Args:
        nll_T: >= 0, infinity allowed.
        gamma: 0 is cross-entropy: the nll itself, slope 1.
        detach_modulator: Leave the modulator out of the slope, only to reproduce work that did.
    """
    if gamma == 0:
        return nll_T, torch.ones_like(nll_T)
    modulator_T = (-torch.expm1(-nll_T)).pow(gamma)
    value_T = modulator_T * nll_T
    if detach_modulator:
        return value_T, modulator_T
    odds_T = torch.expm1(nll_T)  # q / p; infinite above 88 nats in fp32, where r is 0
    ratio_T = torch.where(odds_T > 0, nll_T / odds_T, 1.0)
    ratio_T = torch.where(odds_T < float("inf"), ratio_T, 0.0)  # an infinite nll too
    return value_T, modulator_T * (1 + gamma * ratio_T)


def focal_from_nll(nll_T: Tensor, gamma: float, detach_modulator: bool = False) -> Tensor:
    """FL of every row with its exact gradient; arguments as of `focal_value_and_slope`."""
    value_T: Tensor = _FocalFromNll.apply(  # type: ignore[no-untyped-call]
        nll_T, gamma, detach_modulator
    )
    return value_T


class _FocalFromNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, nll_T: Tensor, gamma: float, detach_modulator: bool) -> Tensor:
        value_T, slope_T = focal_value_and_slope(nll_T, gamma, detach_modulator)
        ctx.save_for_backward(slope_T)
        return value_T.clone() if value_T is nll_T else value_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_T: Tensor) -> tuple[Tensor, None, None]:
        (slope_T,) = ctx.saved_tensors
        return upstream_T * slope_T, None, None
