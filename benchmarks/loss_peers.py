"""Focal loss over an output layer, by us and by others: mean over the tokens.

If a peer only has plain cross-entropy, its nll goes through our exact f(nll).

T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.kernels.focal import focal_from_nll
from trainer.losses.loss import IGNORE_INDEX, linear_focal_loss

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Absent(Exception):
    """A peer that does not run here, with the reason."""


def naive(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, gamma: float) -> Tensor:
    """The usual code: all logits, cross-entropy, (1 - p) ** gamma."""
    nll_T = F.cross_entropy((hidden_TD @ weight_VD.t()).float(), target_T, reduction="none")
    return ((1 - torch.exp(-nll_T)) ** gamma * nll_T).sum() / _count(target_T)


def compiled() -> Loss:
    """The naive loss under torch.compile."""
    return torch.compile(naive)


def ours(backend: str) -> Loss:
    """linear_focal_loss of a back end; ignored tokens are dropped by index, as in training."""

    def loss(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, gamma: float) -> Tensor:
        if "valid" in _INDEX:
            hidden_TD = hidden_TD.index_select(0, _INDEX["valid"])
            target_T = target_T[_INDEX["valid"]]
        result = linear_focal_loss(hidden_TD, weight_VD, target_T, gamma, backend=backend)
        return result.sum / result.count

    return loss


_INDEX: dict[str, Tensor] = {}


def know_valid(target_T: Tensor) -> None:
    """Find the labelled tokens once, outside the measured part."""
    valid = (target_T != IGNORE_INDEX).nonzero()[:, 0]
    if len(valid) < len(target_T):
        _INDEX["valid"] = valid
    else:
        _INDEX.clear()


def torch_fused() -> Loss:
    """torch's chunked linear_cross_entropy, nll of each token, then f(nll)."""
    if not hasattr(F, "linear_cross_entropy"):
        raise Absent("this torch has no linear_cross_entropy")

    def loss(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, gamma: float) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        nll_T = F.linear_cross_entropy(
            hidden_TD, weight_VD, target_T, reduction="none", options=options
        )
        return focal_from_nll(nll_T.float(), gamma).sum() / _count(target_T)

    return loss


def trl() -> Loss:
    """TRL's chunked log-probabilities, then f(nll); it knows no ignored tokens."""
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK_SIZE
    except ImportError as error:
        raise Absent("not installed") from error

    def loss(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, gamma: float) -> Tensor:
        log_p_T, *_ = ChunkedLogProbFunction.apply(
            hidden_TD, weight_VD, None, target_T.clamp_min(0), 1.0, CHUNK_SIZE, None, 1.0, ()
        )
        value_T = focal_from_nll(-log_p_T, gamma)
        return torch.where(target_T != IGNORE_INDEX, value_T, 0).sum() / _count(target_T)

    return loss


def deepspeed_tiled(tile_rows: int = 512) -> Loss:
    """DeepSpeed's tiled loss around the naive one."""
    try:
        from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss
    except ImportError as error:
        raise Absent("not installed") from error

    def loss(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, gamma: float) -> Tensor:
        def tile(_: object, x: Tensor, y: Tensor) -> Tensor:
            return naive(x, weight_VD, y, gamma) * _count(y)

        shards = -(-len(hidden_TD) // tile_rows)
        total: Tensor = TiledFusedLogitsLoss.apply(
            tile, None, hidden_TD[None], target_T[None], None, shards, [weight_VD], "sum"
        )
        return total / _count(target_T)

    return loss


def liger() -> Loss:
    """Liger's fused linear cross-entropy, which has no focal loss: gamma is not applied."""
    if not torch.cuda.is_available():
        raise Absent("its kernels need a GPU")
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError as error:
        raise Absent("not installed") from error

    def loss(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, gamma: float) -> Tensor:
        mean: Tensor = liger_fused_linear_cross_entropy(hidden_TD, weight_VD, target_T)
        return mean

    return loss


def _count(target_T: Tensor) -> Tensor:
    return (target_T != IGNORE_INDEX).sum()


# By their names in the table; an absent peer says why when it is made.
CONTENDERS: dict[str, Callable[[], Loss]] = {
    "ours, torch": lambda: ours("torch"),
    "ours, triton": lambda: ours("triton"),
    "naive eager": lambda: naive,
    "torch.compile of naive": compiled,
    "torch linear_cross_entropy + f(nll)": torch_fused,
    "TRL chunked + f(nll)": trl,
    "DeepSpeed tiled": deepspeed_tiled,
    "Liger, plain cross-entropy": liger,
}
