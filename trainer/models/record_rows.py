"""The records of a packed batch as padded rows, which any model computes as stock code does.

State-space layers, position biases and encoders see across the records of a packed row whatever the
mask is. Here each record becomes a row of its own, as stock code takes it: token ids and a padding
mask. Records of similar length share a forward pass, so that little of it is padding.

B rows, T tokens in a row, P = B x T places; N records of a pass, L tokens of its longest, R records
of all passes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.batches.batch import Batch

Ints = npt.NDArray[np.int64]

MOST_PADDING = 0.1  # of the places of all passes
ZERO3_PASSES = 4  # under ZeRO 3 each pass is a collective, so all ranks need the same number


@dataclass(frozen=True)
class RecordRows:
    """The passes of a batch, and where each of its places is in them.

    Attributes:
        inputs: Token ids (N, L) and mask (N, L), 1 for a token and 0 for padding, of each pass.
        place_P: Index of each place of the batch among all N x L places of the passes.
        record_P: Index of its record among the R rows of the passes.
    """

    inputs: tuple[tuple[Tensor, Tensor], ...]
    place_P: Tensor
    record_P: Tensor

    def states(self, batch: Batch, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """States (S, D) at the places that are read; `run` takes ids and mask to (N, L, D)."""
        hidden_QD = torch.cat([run(*inputs).flatten(0, 1) for inputs in self.inputs])
        return hidden_QD[self.place_P[_places_read(batch)]]

    def of_records(self, batch: Batch, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A row (S, ...) of the record of each place read; `run` takes ids and mask to (N, ...)."""
        rows_R = torch.cat([run(*inputs) for inputs in self.inputs])
        return rows_R[self.record_P[_places_read(batch)]]


def record_rows(
    batch: Batch, pad_id: int, num_passes: int | None = None, most_padding: float = MOST_PADDING
) -> RecordRows:
    """Lay the records of a batch out in passes; without records there is one pass of one token.

    Args:
        pad_id: Fills the ends of rows.
        num_passes: Exactly this many; None: as few as keep the padding low.
        most_padding: Share of all places; 0: only records of one length share a pass; below 0: no
            records do.
    """
    width, device = batch.input_ids_BT.shape[1], batch.input_ids_BT.device
    starts_R, lengths_R = _records(batch, width)
    # The longest first: some models, as BigBird, compute long records otherwise after a short one.
    passes = group_by_length(lengths_R, num_passes, most_padding)[::-1]
    place_P = np.zeros(batch.input_ids_BT.numel(), np.int64)
    record_P = np.zeros_like(place_P)
    ids_P, inputs, num_places, num_records = batch.input_ids_BT.flatten(), [], 0, 0
    for records in passes:
        lengths_N, steps_L = lengths_R[records], np.arange(lengths_R[records].max())
        mask_NL = steps_L < lengths_N[:, None]
        sources_NL = np.where(mask_NL, starts_R[records][:, None] + steps_L, 0)
        rows_N = np.arange(len(records))
        place_P[sources_NL[mask_NL]] = num_places + np.flatnonzero(mask_NL)
        record_P[sources_NL[mask_NL]] = num_records + np.repeat(rows_N, lengths_N)
        num_places, num_records = num_places + mask_NL.size, num_records + len(records)
        mask = torch.from_numpy(mask_NL).to(device, non_blocking=True)
        sources = torch.from_numpy(sources_NL).to(device, non_blocking=True)
        inputs.append((ids_P[sources].where(mask, pad_id), mask.long()))
    return RecordRows(
        tuple(inputs),
        torch.from_numpy(place_P).to(device, non_blocking=True),
        torch.from_numpy(record_P).to(device, non_blocking=True),
    )


def group_by_length(
    lengths_R: Ints, num_passes: int | None = None, most_padding: float = MOST_PADDING
) -> list[Ints]:
    """Indices of the records of each pass, the shortest first; arguments as of `record_rows`.

    From one pass a length on, the two neighbours whose union pads least are joined, while all
    padding stays low, or until `num_passes` are left. Where there are fewer, the first record is
    repeated: its states are taken from one of the passes.
    """
    order_R = np.argsort(lengths_R, kind="stable")
    if num_passes is None and most_padding < 0:
        return np.split(order_R, len(order_R))
    longest, counts = np.unique(lengths_R, return_counts=True)
    tokens, padding = int(lengths_R.sum()), 0
    while len(longest) > 1:
        added = counts[:-1] * np.diff(longest)
        cheapest = int(added.argmin())
        padding += int(added[cheapest])
        if num_passes is None and padding > most_padding * (tokens + padding):
            break
        if num_passes is not None and len(longest) <= num_passes:
            break
        counts[cheapest + 1] += counts[cheapest]
        longest, counts = np.delete(longest, cheapest), np.delete(counts, cheapest)
    passes = np.split(order_R, np.cumsum(counts)[:-1])
    return passes + [order_R[:1]] * ((num_passes or 0) - len(passes))


def _records(batch: Batch, width: int) -> tuple[Ints, Ints]:
    """First place and length of every record; of a batch without any, its first token."""
    lengths_G = np.array(batch.segment_lengths, np.int64)
    starts_G = np.cumsum(lengths_G) - lengths_G
    is_record_G = starts_G % width < np.array(batch.used_B)[starts_G // width]
    if not is_record_G.any():
        return np.zeros(1, np.int64), np.ones(1, np.int64)
    return starts_G[is_record_G], lengths_G[is_record_G]


def _places_read(batch: Batch) -> Tensor:
    return batch.row_S * batch.input_ids_BT.shape[1] + batch.read_S
