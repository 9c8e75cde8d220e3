"""Rows of packed functions -> the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.tokenization import ExampleSet

Ints = npt.NDArray[np.int64]

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
        examples: The split; its tokens are an array or a memory map of any integer type.
        rows: Example indices of each row.

    Returns:
        A batch on the host.
    """
    num_functions_B = np.array([len(row) for row in rows] or [0], dtype=np.int64)
    example_S = np.concatenate([*rows, np.zeros(0, np.int64)], dtype=np.int64)
    ends_S = np.cumsum(examples.lengths[example_S])
    row_ends_B = np.append(0, ends_S)[np.cumsum(num_functions_B)]
    used_B = np.diff(row_ends_B, prepend=0)
    width = -(-max(1, int(used_B.max())) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    input_ids_BT, position_ids_BT, segment_ids_BT, segment_lengths = _lay_out(
        examples, example_S, num_functions_B, width - used_B, width
    )
    row_S = np.repeat(np.arange(len(num_functions_B)), num_functions_B)
    return Batch(
        input_ids_BT=torch.from_numpy(input_ids_BT),
        position_ids_BT=torch.from_numpy(position_ids_BT),
        segment_ids_BT=torch.from_numpy(segment_ids_BT),
        segment_lengths=segment_lengths,
        row_S=torch.from_numpy(row_S),
        last_token_S=torch.from_numpy(ends_S - 1 - (row_ends_B - used_B)[row_S]),
        labels_S=torch.from_numpy(examples.label_E[example_S].astype(np.int64)),
        weights_S=torch.from_numpy(
            (examples.weight_E[example_S] * examples.share_E[example_S]).astype(np.float32)
        ),
        example_S=example_S,
        num_functions=float(examples.share_E[example_S].sum()),
        num_tokens=int(used_B.sum()),
    )


def _lay_out(
    examples: ExampleSet, example_S: Ints, num_functions_B: Ints, padding_B: Ints, width: int
) -> tuple[Ints, Ints, Ints, tuple[int, ...]]:
    """Tokens, positions and segments of rows, without a loop over functions.

    G segments: the functions and, at the end of each row, its padding, which can be of no token.
    """
    shape = (len(num_functions_B), width)
    row_ends_B = np.cumsum(num_functions_B)
    lengths_G = np.insert(examples.lengths[example_S], row_ends_B, padding_B)
    sources_G = np.insert(examples.starts[example_S], row_ends_B, 0)
    starts_G = np.cumsum(lengths_G) - lengths_G
    segments_B = num_functions_B + 1
    first_of_row_G = np.repeat(np.cumsum(segments_B) - segments_B, segments_B)
    segment_ids = np.repeat(np.arange(len(lengths_G)) - first_of_row_G, lengths_G)
    places = np.arange(shape[0] * width)
    position_ids = places - np.repeat(starts_G, lengths_G)
    input_ids = np.zeros(shape, np.int64)
    if len(example_S):
        sources = places + np.repeat(sources_G - starts_G, lengths_G)
        # clip, as what stands for the padding can lie behind the last token: it is overwritten
        tokens = np.asarray(examples.tokens).take(sources, mode="clip")
        input_ids[:] = tokens.reshape(shape)
    for row, padding in enumerate(padding_B.tolist()):
        input_ids[row, width - padding :] = 0
    return (
        input_ids,
        position_ids.reshape(shape),
        segment_ids.reshape(shape),
        tuple(lengths_G[lengths_G > 0].tolist()),
    )
