"""The losses, as reference and fused.

Every loss returns a sum and a count; the step divides once.

S rows to score, C classes; T tokens, D hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.kernels.focal import focal_from_nll
from trainer.kernels.linear_focal import LinearFocal
from trainer.kernels.rows import nll_and_gradient

IGNORE_INDEX = -100


@dataclass(frozen=True)
class LossSum:
    """A loss before division by its count.

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
    _check_gamma(gamma)
    if logits_SC.dtype != torch.float64:
        logits_SC = logits_SC.float()
    labelled_S = targets_S != IGNORE_INDEX
    target_S, weight_S, count = _row_weights(labelled_S, targets_S, alpha_C, weights_S, logits_SC)
    nll_S = _NegativeLogLikelihood.apply(logits_SC, target_S)  # type: ignore[no-untyped-call]
    value_S = focal_from_nll(nll_S, gamma, detach_modulator)
    # where, not a product: an ignored row of infinite logits must add 0, not NaN.
    return LossSum(torch.where(labelled_S, value_S * weight_S, 0).sum(), count)


def multi_label_focal_loss(
    logits_SC: Tensor,
    holds_SC: Tensor,
    gamma: float,
    *,
    weights_2C: Tensor | None = None,
    weights_S: Tensor | None = None,
    detach_modulator: bool = False,
) -> LossSum:
    """Sum over rows of the mean over classes of the sigmoid focal loss (Lin et al. 2017, eq. 5).

    Each class is a question of two answers: the softmax over (0, z) is the sigmoid of z. With gamma
    0 and no weights this over the count is torch's BCEWithLogitsLoss.

    Args:
        logits_SC: As in `focal_loss`.
        holds_SC: 1 for a class that holds, 0 for another.
        gamma: >= 0; 0 is binary cross-entropy.
        weights_2C: Weight of each class where it does not hold, and where it does.
        weights_S: Weight of each row; multiplies its loss, not its count.
        detach_modulator: As in `focal_loss`.

    Returns:
        Loss sum in nats and the number of rows.

    Raises:
        ValueError: gamma is negative or not finite.
    """
    num_classes = logits_SC.shape[1]
    weight_SC = torch.ones_like(logits_SC, dtype=torch.promote_types(logits_SC.dtype, torch.float))
    if weights_2C is not None:
        weight_SC = torch.where(holds_SC.bool(), weights_2C[1], weights_2C[0]).to(weight_SC)
    if weights_S is not None:
        weight_SC = weight_SC * weights_S.to(weight_SC)[:, None]
    loss = focal_loss(
        torch.stack([torch.zeros_like(logits_SC), logits_SC], dim=2).flatten(0, 1),
        holds_SC.flatten(),
        gamma,
        weights_S=weight_SC.flatten(),
        detach_modulator=detach_modulator,
    )
    return LossSum(loss.sum / num_classes, loss.count / num_classes)


def linear_focal_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    gamma: float,
    *,
    bias_V: Tensor | None = None,
    weights_T: Tensor | None = None,
    detach_modulator: bool = False,
    backend: str = "torch",
    cap: float | None = None,
) -> LossSum:
    """`focal_loss` of the logits hidden_TD @ weight_VD.T + bias_V, without all logits in memory.

    Args:
        hidden_TD: Hidden states, each at the token before the one it predicts.
        weight_VD: Weight of the output layer, in the dtype of hidden_TD; frozen or trained.
        targets_T: Token ids; IGNORE_INDEX tokens add neither loss nor count, but cost a projection.
        gamma: >= 0; 0 is plain cross-entropy.
        bias_V: Bias of the output layer.
        weights_T: Weight of each token; multiplies its loss, not its count.
        detach_modulator: As in `focal_loss`.
        backend: torch, triton or reference; as settled.
        cap: The logits are cap x tanh(logits / cap) where it is not None.

    Raises:
        ValueError: gamma is negative or not finite, or the dtypes differ.
    """
    _check_gamma(gamma)
    if hidden_TD.dtype != weight_VD.dtype:
        raise ValueError(
            f"hidden states are {hidden_TD.dtype}, the output layer {weight_VD.dtype}; convert one"
        )
    labelled_T = targets_T != IGNORE_INDEX
    if backend == "reference":
        hidden_TD = torch.where(labelled_T[:, None], hidden_TD, 0)  # it may hold NaN
        logits_TV = _all_logits(hidden_TD, weight_VD, bias_V)
        logits_TV = logits_TV if cap is None else cap * torch.tanh(logits_TV / cap)
        return focal_loss(
            logits_TV, targets_T, gamma, weights_S=weights_T, detach_modulator=detach_modulator
        )
    target_T, weight_T, count = _row_weights(labelled_T, targets_T, None, weights_T, hidden_TD)
    loss = LinearFocal(gamma, detach_modulator, backend, cap)
    return LossSum(loss.loss_sum(hidden_TD, weight_VD, bias_V, target_T, weight_T), count)


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma must be finite and >= 0, found {gamma}")


def _row_weights(
    labelled_S: Tensor,
    targets_S: Tensor,
    alpha_C: Tensor | None,
    weights_S: Tensor | None,
    like: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """For every row a valid target and its weight (0 where ignored), and the labelled count."""
    target_S = torch.where(labelled_S, targets_S, 0)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    weight_S = labelled_S.to(dtype)
    count = weight_S.sum()
    if weights_S is not None:
        weight_S = weight_S * weights_S.to(dtype)
    if alpha_C is not None:
        weight_S = weight_S * alpha_C.to(weight_S)[target_S]
    return target_S, weight_S, count


def _all_logits(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Tokens x vocabulary, in fp32 or float64."""
    if hidden_TD.dtype != torch.float64:
        hidden_TD, weight_VD = hidden_TD.float(), weight_VD.float()
    logits_TV = hidden_TD @ weight_VD.t()
    return logits_TV if bias_V is None else logits_TV + bias_V


class _NegativeLogLikelihood(torch.autograd.Function):
    """The nll of whole rows of logits; see trainer/kernels/rows.py."""

    @staticmethod
    def forward(ctx: Any, logits_SC: Tensor, target_S: Tensor) -> Tensor:
        gradient_SC = logits_SC.clone()
        nll_S = nll_and_gradient(gradient_SC, target_S, gradient_SC)
        ctx.save_for_backward(gradient_SC)
        return nll_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_S: Tensor) -> tuple[Tensor, None]:
        (gradient_SC,) = ctx.saved_tensors
        return upstream_S[:, None] * gradient_SC, None
