"""Ways to keep the records of a packed row apart inside the model.

varlen   attention gets the boundaries: FlashAttention, torch's own kernels (varlen_kernels.py), or
         SDPA segment by segment on a CPU
mask     each layer gets one explicit block-diagonal mask, which would hide a window of the layer
native   positions restart without a mask, so transformers builds a packed mask for each layer
rows     see trainer/models/record_rows.py

B rows, T tokens per row, H heads, D head size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from data.batches.batch import Batch
from trainer.config.methods import SEGMENT_SDPA
from trainer.models.record_rows import MOST_PADDING

VARLEN, MASK, NATIVE, ROWS = "varlen", "mask", "native", "rows"
# What layers pass to attention beside their tensors and that changes nothing here: their own
# copies of what is passed to all, and what only generation or other back ends read.
_WITHOUT_EFFECT = (
    "position_ids", "position_embeddings", "use_cache", "past_key_values", "is_causal",
    "output_attentions", "output_router_logits", "cache_position", "layer_idx",
)  # fmt: skip


@dataclass(frozen=True)
class Strategy:
    """How records are kept apart.

    Attributes:
        name: varlen, mask, native or rows.
        attention: The back end of transformers that computes it.
        num_passes, most_padding: Of rows, as in `record_rows`.
    """

    name: str
    attention: str
    num_passes: int | None = None
    most_padding: float = MOST_PADDING

    def __str__(self) -> str:
        """As in the banner."""
        of_rows = "" if self.most_padding > 0 else " without padding"
        of_rows = ", one record a pass" if self.most_padding < 0 else of_rows
        return f"{self.name}{of_rows} ({self.attention})"


def packed_inputs(batch: Batch, strategy: Strategy, dtype: torch.dtype) -> dict[str, Any]:
    """The keyword arguments that keep the records of a packed batch apart.

    Args:
        batch: A batch on the model's device.
        strategy: Any but rows.
        dtype: Dtype of the hidden states, which an additive mask must have.
    """
    inputs: dict[str, Any] = {"position_ids": batch.position_ids_BT, "use_cache": False}
    if strategy.name == MASK:
        inputs["attention_mask"] = causal_segment_mask(batch.segment_ids_BT, dtype)
    elif strategy.attention == SEGMENT_SDPA:
        inputs["segment_lengths"] = batch.segment_lengths
    elif strategy.name == VARLEN:
        inputs |= _varlen_arguments(batch)
    return inputs


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
    segment_lengths: tuple[int, ...] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal SDPA of each segment in turn: its cost depends on the functions, not on the row.

    `segment_lengths` are host integers, so slicing does not wait for the device. A row ends where
    the lengths add up to T.

    Raises:
        NotImplementedError: The layer wants what is not passed on: it would be left out silently.
    """
    if segment_lengths is None:
        raise NotImplementedError(f"{type(module).__name__} does not get the boundaries")
    assert attention_mask is None  # the name has no mask function: transformers makes none
    refuse_unknown(module, kwargs)
    outputs = [
        sdpa_attention_forward(
            module,
            *tensors,
            _window_mask(length, sliding_window, query_BHTD.device),
            dropout=dropout,
            scaling=scaling,
            is_causal=True,
        )[0]
        for length, *tensors in zip(
            segment_lengths,
            *(_segments(whole, segment_lengths) for whole in (query_BHTD, key_BHTD, value_BHTD)),
            strict=True,
        )
    ]
    num_rows, _, width, _ = query_BHTD.shape
    return torch.cat(outputs, dim=1).view(num_rows, width, *outputs[0].shape[2:]), None


def _segments(whole_BHTD: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The segments (1, H, L, D) of all rows, in order.

    They are split off together: the gradient of each slice would be as wide as all rows.
    """
    ends, width = accumulate(lengths), whole_BHTD.shape[2]
    of_row: dict[int, list[int]] = {}
    for length, end in zip(lengths, ends, strict=True):
        of_row.setdefault((end - 1) // width, []).append(length)
    rows = torch.split(whole_BHTD, 1)
    return [part for row, own in of_row.items() for part in torch.split(rows[row], own, dim=2)]


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Where a token sees another, for a segment longer than the window, itself counted."""
    if window is None or length <= window:
        return None
    seen_TT = torch.ones(length, length, dtype=torch.bool, device=device)
    return seen_TT.tril().triu(1 - window)[None, None]


def refuse_unknown(module: torch.nn.Module, given: Mapping[str, Any]) -> None:
    """Refuse what a layer passes to attention that would be left out silently."""
    unknown = [
        name
        for name, value in given.items()
        if name not in _WITHOUT_EFFECT and value is not None and value is not False
    ]
    if given.get("is_causal", getattr(module, "is_causal", True)) is False:
        unknown.append("is_causal=False")
    if unknown:
        raise NotImplementedError(f"{type(module).__name__} passes {', '.join(unknown)}")


AttentionInterface.register(SEGMENT_SDPA, _segment_sdpa)
