"""Rows of packed functions -> the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.tokenization import ExampleSet

_WIDTH_MULTIPLE = 8  # tensor cores want it; the padding is never read


@dataclass(frozen=True)
class Batch:
    """One micro-batch. B rows, T tokens per row, S packed functions.

    The padding at the end of a row is a segment of its own. Positions count from 0 in every
    segment, so a row reads

        tokens     a b c $ d e $ . .        $ end token, . padding
        positions  0 1 2 3 0 1 2 0 1
        segments   0 0 0 0 1 1 1 2 2
        labels read at (row, 3) and (row, 6)

    Attributes:
        input_ids_BT: int64.
        position_ids_BT: int64, restarting at each function.
        segment_ids_BT: int64, counted from 0 in each row.
        segment_lengths: Tokens of every segment, row by row, padding included: they sum to B x T.
        row_S: Row of each function.
        last_token_S: Column of each function's last token, as packed.
        labels_S: Class ids.
        weights_S: float32 loss weights: group weight x share.
        example_S: Indices into the ExampleSet, on the host.
        num_functions: Sum of shares: what the loss sum is divided by, once added over the step.
        num_tokens: Real tokens, without padding.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    segment_ids_BT: Tensor
    segment_lengths: tuple[int, ...]
    row_S: Tensor
    last_token_S: Tensor
    labels_S: Tensor
    weights_S: Tensor
    example_S: npt.NDArray[np.int64]
    num_functions: float
    num_tokens: int

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copies do not wait."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def collate(examples: ExampleSet, rows: Sequence[npt.NDArray[np.int64]]) -> Batch:
    """Lay out rows of examples; no row at all gives a batch of padding without functions.

    Args:
        examples: The split.
        rows: Example indices of each row.

    Returns:
        A batch on the host.
    """
    lengths = [examples.lengths[row] for row in rows]
    longest = max((int(length.sum()) for length in lengths), default=1)
    width = -(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    shape = (max(1, len(rows)), width)
    input_ids, positions, segments = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    segment_lengths: list[int] = []
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ends = np.cumsum(length)
        used = int(ends[-1])
        tokens = [examples.tokens[examples.starts[e] : examples.starts[e + 1]] for e in row]
        input_ids[place, :used] = np.concatenate(tokens)
        all_lengths = [*length.tolist(), *([width - used] if used < width else [])]
        positions[place] = np.concatenate([np.arange(n) for n in all_lengths])
        segments[place] = np.repeat(np.arange(len(all_lengths)), all_lengths)
        segment_lengths += all_lengths
    if not rows:
        positions[0] = np.arange(width)
        segment_lengths = [width]
    example_S = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64)
    return Batch(
        input_ids_BT=torch.from_numpy(input_ids),
        position_ids_BT=torch.from_numpy(positions),
        segment_ids_BT=torch.from_numpy(segments),
        segment_lengths=tuple(segment_lengths),
        row_S=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row) for row in rows])),
        last_token_S=torch.from_numpy(
            np.concatenate([np.cumsum(length) - 1 for length in lengths] or [np.zeros(0, np.int64)])
        ),
        labels_S=torch.from_numpy(examples.label_E[example_S].astype(np.int64)),
        weights_S=torch.from_numpy(
            (examples.weight_E[example_S] * examples.share_E[example_S]).astype(np.float32)
        ),
        example_S=example_S,
        num_functions=float(examples.share_E[example_S].sum()),
        num_tokens=int(examples.lengths[example_S].sum()),
    )
