"""The reference of each loss. Every loss returns a sum and a count, divided once for the step.

S rows to score, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100


@dataclass(frozen=True)
class LossSum:
    """A loss before its division.

    Attributes:
        sum: Scalar, fp32 (float64 for float64 logits), in nats.
        count: Scalar of the same dtype: labelled rows.
    """

    sum: Tensor
    count: Tensor


def focal_loss(
    logits_SC: Tensor,
    targets_S: Tensor,
    gamma: float,
    *,
    alpha_C: Tensor | None = None,
    weights_S: Tensor | None = None,
    detach_modulator: bool = False,
) -> LossSum:
    """Sum alpha (1 - p_t)^gamma * cross-entropy over labelled rows (Lin et al. 2017, eq. 5).

    Args:
        logits_SC: Any float dtype; computed in fp32, in float64 where given so.
        targets_S: Class ids; IGNORE_INDEX rows add neither loss nor count.
        gamma: >= 0; 0 is plain cross-entropy.
        alpha_C: Weight of each class; None is 1.
        weights_S: Weight of each row; multiplies its loss, not its count.
        detach_modulator: Leave the modulator's gradient out, only to reproduce work that did.

    Returns:
        Loss sum in nats and the number of labelled rows.

    Raises:
        ValueError: gamma is negative or not finite.
    """
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma must be finite and >= 0, found {gamma}")
    if logits_SC.dtype != torch.float64:
        logits_SC = logits_SC.float()
    labelled_S = targets_S != IGNORE_INDEX
    target_S = torch.where(labelled_S, targets_S, 0)
    weight_S = labelled_S.to(logits_SC.dtype)
    count = weight_S.sum()
    if weights_S is not None:
        weight_S = weight_S * weights_S
    if alpha_C is not None:
        weight_S = weight_S * alpha_C.to(logits_SC)[target_S]
    nll_S = _NegativeLogLikelihood.apply(logits_SC, target_S)  # type: ignore[no-untyped-call]
    value_S = _FocalOfNll.apply(nll_S, gamma, detach_modulator)  # type: ignore[no-untyped-call]
    # where, not a product: an ignored row of infinite logits must add 0, not NaN.
    return LossSum(torch.where(labelled_S, value_S * weight_S, 0).sum(), count)


class _NegativeLogLikelihood(torch.autograd.Function):
    """nll = log1p(s), s = sum over j != y of exp(z_j - z_y).

    Leaving the target out of the sum keeps the relative accuracy of a confident row, whose nll is
    tiny. The gradient is P - [j = y], stored as -(1 - p) = -s / (1 + s) at the target, never formed
    by subtracting from 1.
    """

    @staticmethod
    def forward(ctx: Any, logits_SC: Tensor, target_S: Tensor) -> Tensor:
        target_S1 = target_S[:, None]
        target_logit_S1 = logits_SC.gather(1, target_S1)
        others_SC = logits_SC.scatter(1, target_S1, float("-inf"))
        highest_S1 = torch.maximum(others_SC.amax(1, keepdim=True), target_logit_S1)
        others_SC = (others_SC - highest_S1).exp()
        sum_others_S1 = others_SC.sum(1, keepdim=True)
        target_exp_S1 = (target_logit_S1 - highest_S1).exp()
        total_S1 = sum_others_S1 + target_exp_S1
        nll_S1 = torch.where(
            sum_others_S1 < target_exp_S1,
            torch.log1p(sum_others_S1 / target_exp_S1),
            highest_S1 - target_logit_S1 + total_S1.log(),
        )
        gradient_SC = (others_SC / total_S1).scatter(1, target_S1, -sum_others_S1 / total_S1)
        ctx.save_for_backward(gradient_SC)
        return nll_S1.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_S: Tensor) -> tuple[Tensor, None]:
        (gradient_SC,) = ctx.saved_tensors
        return upstream_S[:, None] * gradient_SC, None


class _FocalOfNll(torch.autograd.Function):
    """FL = q^gamma l with q = 1 - exp(-l), a function of the nll l alone.

    dFL/dl = q^gamma (1 + gamma r), r = l p / q = l / expm1(l), in (0, 1], r(0) = 1. For gamma < 1
    the pole of q^(gamma - 1) cancels against r, where autograd through (1 - p) ** gamma gives NaN.
    """

    @staticmethod
    def forward(ctx: Any, nll_S: Tensor, gamma: float, detach_modulator: bool) -> Tensor:
        if gamma == 0:
            ctx.save_for_backward(torch.ones_like(nll_S))
            return nll_S.clone()
        modulator_S = (-torch.expm1(-nll_S)).pow(gamma)
        slope_S = modulator_S
        if not detach_modulator:
            odds_S = torch.expm1(nll_S)  # q / p; infinite above 88 nats in fp32, then r = 0
            ratio_S = torch.where(odds_S > 0, nll_S / odds_S, 1.0)
            slope_S = modulator_S * (1 + gamma * ratio_S)
        ctx.save_for_backward(slope_S)
        return modulator_S * nll_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_S: Tensor) -> tuple[Tensor, None, None]:
        (slope_S,) = ctx.saved_tensors
        return upstream_S * slope_S, None, None
