"""Rows of packed examples -> the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.text.tokenization import ExampleSet

Ints = npt.NDArray[np.int64]

_WIDTH_MULTIPLE = 8  # for tensor cores; the padding is never read


@dataclass(frozen=True)
class Batch:
    """One micro-batch. B rows, T tokens in a row, S places whose hidden state is read.

    The padding at the end of a row is a segment of its own. Positions count from 0 in every
    segment, so a row of functions reads

        tokens     a b c $ d e $ . .        $ end token, . padding
        positions  0 1 2 3 0 1 2 0 1
        segments   0 0 0 0 1 1 1 2 2
        labels read at (row, 3) and (row, 6)

    A row of language in which b, $ and e are supervised is read before each of them: at (row, 0),
    (row, 2) and (row, 4), with the labels b, $ and e.

    Attributes:
        input_ids_BT: int64.
        position_ids_BT: int64, from 0 in each example, or in each row if examples are not isolated.
        segment_ids_BT: int64, counted from 0 in each row.
        segment_lengths: Tokens of every segment, row by row, with padding; their sum is B x T.
        used_B: Real tokens of each row, on the host; padding follows them.
        read_S: Its column: the last token of a function, or the token before a target.
        labels_S: Class ids, or token ids; (S, C) with 1 for a class that holds, of several at once.
        weights_S: float32 loss weights: the example's weight times its share of a function.
        example_S: Indices into the ExampleSet, on the host.
        count: Functions (as shares) or targets. The loss sum is divided by their total in the step.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    segment_ids_BT: Tensor
    segment_lengths: tuple[int, ...]
    used_B: tuple[int, ...]
    row_S: Tensor
    read_S: Tensor
    labels_S: Tensor
    weights_S: Tensor
    example_S: npt.NDArray[np.int64]
    count: float

    @property
    def num_tokens(self) -> int:
        """Real tokens, without padding."""
        return sum(self.used_B)

    def pinned(self) -> "Batch":
        """The batch in memory from which a GPU copies while the host goes on."""
        tensors: dict[str, Any] = {
            name: value.pin_memory() for name, value in vars(self).items() if torch.is_tensor(value)
        }
        return replace(self, **tensors)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copies do not wait."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def collate(
    examples: ExampleSet, rows: Sequence[npt.NDArray[np.int64]], *, isolate: bool = True
) -> Batch:
    """Lay out rows of examples; without rows, the batch is one row of padding.

    Args:
        examples: The split; its tokens are an array or a memory map of any integer type.
        rows: Example indices of each row.
        isolate: False makes the examples of a row one segment, as pre-training does. The first
            token of an example is never a target.

    Returns:
        A batch on the host.
    """
    num_examples_B = np.array([len(row) for row in rows] or [0], dtype=np.int64)
    example_F = np.concatenate([*rows, np.zeros(0, np.int64)], dtype=np.int64)
    ends_F = np.cumsum(examples.lengths[example_F])
    row_ends_B = np.append(0, ends_F)[np.cumsum(num_examples_B)]
    used_B = np.diff(row_ends_B, prepend=0)
    width = -(-max(1, int(used_B.max())) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    shape = (len(num_examples_B), width)
    lengths_G, sources = _token_places(examples, example_F, num_examples_B, width - used_B, width)
    input_ids_BT = _taken(examples.tokens, sources, width - used_B, shape).astype(np.int64)
    if isolate:
        segments = _segments(lengths_G, num_examples_B + 1, shape)
    else:
        whole_G = np.stack([used_B, width - used_B], axis=1).reshape(-1)
        segments = _segments(whole_G, np.full(len(used_B), 2), shape)
    if examples.supervised is None:
        row_S = np.repeat(np.arange(shape[0]), num_examples_B)
        read_S, example_S = ends_F - 1 - (row_ends_B - used_B)[row_S], example_F
        labels_S = examples.label_E[example_F].astype(np.int64)
        if examples.members_KC is not None:
            labels_S = examples.members_KC[labels_S].astype(np.int64)
        weights_S = (examples.weight_E[example_F] * examples.share_E[example_F]).astype(np.float32)
    else:
        mask_BT = _taken(examples.supervised, sources, width - used_B, shape)
        row_S, target_S, example_S = _targets(mask_BT, lengths_G, num_examples_B, example_F)
        read_S, labels_S = target_S - 1, input_ids_BT[row_S, target_S]
        weights_S = examples.weight_E[example_S]
    return Batch(
        input_ids_BT=torch.from_numpy(input_ids_BT),
        position_ids_BT=torch.from_numpy(segments[0]),
        segment_ids_BT=torch.from_numpy(segments[1]),
        segment_lengths=segments[2],
        used_B=tuple(used_B.tolist()),
        row_S=torch.from_numpy(row_S),
        read_S=torch.from_numpy(read_S),
        labels_S=torch.from_numpy(labels_S),
        weights_S=torch.from_numpy(weights_S),
        example_S=example_S,
        count=float(examples.count_E[example_F].sum()),
    )


def _token_places(
    examples: ExampleSet, example_F: Ints, num_examples_B: Ints, padding_B: Ints, width: int
) -> tuple[Ints, Ints]:
    """Lengths of G pieces, and the token that each place of the rows takes.

    The pieces are the examples and, at the end of each row, its padding. Padding can be empty, and
    its places can lie behind the last token.
    """
    row_ends_B = np.cumsum(num_examples_B)
    lengths_G = np.insert(examples.lengths[example_F], row_ends_B, padding_B)
    sources_G = np.insert(examples.starts[example_F], row_ends_B, 0)
    starts_G = np.cumsum(lengths_G) - lengths_G
    places = np.arange(len(num_examples_B) * width)
    return lengths_G, places + np.repeat(sources_G - starts_G, lengths_G)


def _taken(
    values: npt.NDArray[Any], sources: Ints, padding_B: Ints, shape: tuple[int, int]
) -> npt.NDArray[Any]:
    """Values laid out in rows, 0 in their padding."""
    if not len(values):
        return np.zeros(shape, values.dtype)
    # clip: places of padding can lie behind the last token; zeros overwrite them
    laid_out = np.asarray(values).take(sources, mode="clip").reshape(shape)
    for row, padding in enumerate(padding_B.tolist()):
        laid_out[row, shape[1] - padding :] = 0
    return laid_out


def _segments(
    lengths_G: Ints, segments_B: Ints, shape: tuple[int, int]
) -> tuple[Ints, Ints, tuple[int, ...]]:
    """Positions, segment ids and lengths, without a loop over segments."""
    starts_G = np.cumsum(lengths_G) - lengths_G
    first_of_row_G = np.repeat(np.cumsum(segments_B) - segments_B, segments_B)
    segment_ids = np.repeat(np.arange(len(lengths_G)) - first_of_row_G, lengths_G)
    position_ids = np.arange(shape[0] * shape[1]) - np.repeat(starts_G, lengths_G)
    return (
        position_ids.reshape(shape),
        segment_ids.reshape(shape),
        tuple(lengths_G[lengths_G > 0].tolist()),
    )


def _targets(
    mask_BT: npt.NDArray[np.bool_], lengths_G: Ints, num_examples_B: Ints, example_F: Ints
) -> tuple[Ints, Ints, Ints]:
    """Row, column and example of every supervised token but the first token of an example."""
    example_G = np.insert(example_F, np.cumsum(num_examples_B), -1)  # -1: padding
    starts_G = np.cumsum(lengths_G) - lengths_G
    mask = mask_BT.reshape(-1)
    mask[starts_G[example_G >= 0]] = False
    flat_S = np.flatnonzero(mask)
    row_S, target_S = np.divmod(flat_S, mask_BT.shape[1])
    return row_S, target_S, np.repeat(example_G, lengths_G)[flat_S]
