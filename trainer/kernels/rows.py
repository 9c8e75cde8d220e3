"""Logits -> nll and its gradient, row by row: the portable backend, for any device.

Everything is a function of the margin by which the target loses to all others,

    sigma = log(sum over j != y of exp(z_j)) - z_y
    nll   = softplus(sigma)        p = sigmoid(-sigma)        q = 1 - p = sigmoid(sigma)
    dnll/dz_j = q exp(z_j) / sum over k != y of exp(z_k),     dnll/dz_y = -q

Leaving the target out of the sum keeps the relative accuracy of a confident row, whose nll is tiny,
and q is never formed by subtracting from 1.

M rows, V classes or tokens of the vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def nll_and_gradient(logits_MV: Tensor, target_M: Tensor, gradient_MV: Tensor | None) -> Tensor:
    """The nll of every row (M,); the logits are overwritten.

    Args:
        logits_MV: fp32 or float64; -inf excludes a class.
        target_M: int64 in [0, V).
        gradient_MV: Takes dnll/dlogits, rounded to its dtype; may be logits_MV itself. None: not
            computed.
    """
    target_M1 = target_M[:, None]
    target_logit_M1 = logits_MV.gather(1, target_M1)
    others_MV = logits_MV.scatter_(1, target_M1, float("-inf"))
    # A finite floor: where all others are -inf, -inf - -inf would be NaN.
    highest_M1 = others_MV.amax(1, keepdim=True).clamp_min(torch.finfo(logits_MV.dtype).min)
    others_MV.sub_(highest_M1).exp_()
    sum_M1 = others_MV.sum(1, keepdim=True)
    sigma_M1 = (highest_M1 - target_logit_M1) + sum_M1.log()
    if gradient_MV is not None:
        q_M1 = sigma_M1.sigmoid()
        others_MV.mul_(torch.where(sum_M1 > 0, q_M1 / sum_M1, 0.0))
        others_MV.scatter_(1, target_M1, -q_M1)
        if gradient_MV.data_ptr() != logits_MV.data_ptr():
            gradient_MV.copy_(others_MV)
    return -F.logsigmoid(-sigma_M1.squeeze(1))
