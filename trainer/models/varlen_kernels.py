"""Attention of packed records by torch's own variable-length kernels: no further package.

torch_varlen     16 bit on sm80 and newer: FlashAttention-2 (Dao 2023), grouped queries as they are
torch_efficient  16 bit on older GPUs: the memory-efficient kernel (Rabe and Staats 2021)

The operators are called as they are: torch's own `varlen_attn` has neither dropout nor a stable
signature. Both get cumulative lengths, so their cost follows the records, not the row. (A name with
"flash" in it would make transformers look for a package.)

B rows, T tokens a row, H heads, G heads of keys and values, D head size, N = B x T.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from trainer.config.methods import TORCH_EFFICIENT, TORCH_VARLEN
from trainer.models.packed_attention import refuse_unknown

_CAUSAL = 1  # custom_mask_type: from the top left corner, as of a record alone


def _flash(
    q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor, ends: Tensor, longest: int, **how: Any
) -> Tensor:
    """Attention of every record alone, (N, H, D)."""
    window = how["window"]
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        q_NHD, k_NGD, v_NGD, ends, ends, longest, longest, how["dropout"], True, False,
        scale=how["scale"], window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )[0]  # fmt: skip
    return attended


def _efficient(
    q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor, ends: Tensor, longest: int, **how: Any
) -> Tensor:
    """As `_flash`; keys and values are repeated for the heads that share them."""
    repeats = q_NHD.shape[1] // k_NGD.shape[1]
    q, k, v = (
        q_NHD[None],
        k_NGD.repeat_interleave(repeats, 1)[None],
        v_NGD.repeat_interleave(repeats, 1)[None],
    )
    attended: Tensor = torch.ops.aten._efficient_attention_forward(
        q, k, v, None, ends, ends, longest, longest, how["dropout"], _CAUSAL, True,
        scale=how["scale"], window_size=how["window"],
    )[0][0]  # fmt: skip
    return attended


def _varlen(
    kernel: Any,
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_k: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for a layer; the boundaries are `packed_inputs`'.

    Raises:
        NotImplementedError: The layer wants what the kernels do not know: it would be left out.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise NotImplementedError(f"{type(module).__name__} does not get the boundaries")
    assert attention_mask is None  # the name has no mask function: transformers makes none
    refuse_unknown(module, kwargs)
    window = None if sliding_window is None or sliding_window >= max_length_q else sliding_window
    flat = [
        whole.transpose(1, 2).reshape(-1, whole.shape[1], whole.shape[3])
        for whole in (query_BHTD, key_BGTD, value_BGTD)
    ]
    attended_NHD = kernel(
        *flat, cu_seq_lens_q, max_length_q, dropout=dropout, scale=scaling, window=window
    )
    rows, _, width, _ = query_BHTD.shape
    return attended_NHD.view(rows, width, *attended_NHD.shape[1:]), None


AttentionInterface.register(TORCH_VARLEN, partial(_varlen, _flash))
AttentionInterface.register(TORCH_EFFICIENT, partial(_varlen, _efficient))
