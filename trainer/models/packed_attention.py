"""Attention inside functions only, for rows that hold several.

No model has to guess the boundaries from positions: eager and SDPA get an explicit mask, and
segment_sdpa and FlashAttention get the boundaries.

B rows, T tokens per row, H heads, D head size.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from data.batches.batch import Batch
from trainer.config.methods import FLASH, SEGMENT_SDPA


def attention_inputs(batch: Batch, attention: str, dtype: torch.dtype) -> dict[str, Any]:
    """The keyword arguments that keep the functions of a batch apart.

    Args:
        batch: A batch on the model's device.
        attention: Resolved back end.
        dtype: Dtype of the hidden states, which an additive mask must have.

    Returns:
        position_ids, use_cache and either attention_mask or the segment boundaries.
    """
    common = {"position_ids": batch.position_ids_BT, "use_cache": False}
    if attention == SEGMENT_SDPA:
        return common | {"segment_lengths": batch.segment_lengths}
    if attention == FLASH:
        return common | _varlen_arguments(batch)
    return common | {"attention_mask": causal_segment_mask(batch.segment_ids_BT, dtype)}


def causal_segment_mask(segment_ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, T, T): 0 where a token may attend, else the dtype's lowest value."""
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    allowed_BTT = same_BTT & torch.ones_like(same_BTT[0]).tril()
    mask_BTT = torch.zeros(allowed_BTT.shape, dtype=dtype, device=segment_ids_BT.device)
    return mask_BTT.masked_fill(~allowed_BTT, torch.finfo(dtype).min)[:, None]


def _varlen_arguments(batch: Batch) -> dict[str, Any]:
    """Boundaries for FlashAttention's varlen call, over the flattened B x T tokens."""
    ends = list(accumulate(batch.segment_lengths, initial=0))
    boundaries = torch.tensor(ends, dtype=torch.int32).to(
        batch.input_ids_BT.device, non_blocking=True
    )
    longest = max(batch.segment_lengths)
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _segment_sdpa(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    *,
    segment_lengths: tuple[int, ...],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal SDPA of each segment in turn: its cost depends on the functions, not on the row.

    `segment_lengths` are host integers, so slicing does not wait for the device. A row ends where
    the lengths add up to T.
    """
    assert attention_mask is None  # the name has no mask function: transformers makes none
    width = query_BHTD.shape[2]
    rows, pieces, row, start = [], [], 0, 0
    for length in segment_lengths:
        here = (slice(row, row + 1), slice(None), slice(start, start + length))
        output, _ = sdpa_attention_forward(
            module,
            query_BHTD[here],
            key_BHTD[here],
            value_BHTD[here],
            None,
            is_causal=True,
            **kwargs,
        )
        pieces.append(output)
        start += length
        if start == width:
            rows.append(torch.cat(pieces, dim=1))
            pieces, row, start = [], row + 1, 0
    return torch.cat(rows, dim=0), None


AttentionInterface.register(SEGMENT_SDPA, _segment_sdpa)
