"""The records by which the proof compares packed scores with stock's."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from data.text.tokenization import ExampleSet

_MOST_RECORDS = 8
_SHARE_OF_SHORT = 8  # an eighth of a row is for short records
_MOST_TOKENS = 64  # of the record whose own logits are compared
_MARGIN = 32  # tokens by which the longest record exceeds a window


def proof_records(
    examples: ExampleSet, seq_length: int, windows: Sequence[int], *, packing: bool
) -> ExampleSet:
    """Short records first, then the longest that fits, longer than any window if a record can be.

    A leak would change it most. The first two are of one length, so that passes without padding
    hold more than one record, too. Every token of a text is a target.
    """
    by_length = np.argsort(examples.lengths, kind="stable")
    needed = max((one + _MARGIN for one in windows if one < seq_length), default=0)
    others, room = by_length[: _MOST_RECORDS - 1], seq_length
    total = np.cumsum(examples.lengths[others])
    if packing:
        most = max(min(room // _SHARE_OF_SHORT, room - needed), int(total[0]))
        room -= int(total[total <= most][-1])
    fitting = by_length[examples.lengths[by_length] <= room]
    longest = int(fitting[-1]) if len(fitting) else int(by_length[0])
    length = max(int(examples.lengths[longest]), min(needed, room))
    if packing:
        others = others[total <= seq_length - length]
    chosen = _with_equal_lengths(examples.subset(np.append(others[others != longest], longest)))
    extra = np.resize(chosen.tokens, length - int(chosen.lengths[-1]))
    tokens = np.concatenate([chosen.tokens, extra])
    return replace(
        chosen,
        tokens=tokens,
        starts=np.append(chosen.starts[:-1], len(tokens)),
        supervised=None if chosen.supervised is None else np.ones(len(tokens), np.bool_),
    )


def _with_equal_lengths(records: ExampleSet) -> ExampleSet:
    """The second record as short as the first, by losing what is before its last token."""
    if len(records) < 3:
        return records
    surplus = slice(records.starts[1] + records.lengths[0] - 1, records.starts[2] - 1)
    starts = records.starts.copy()
    starts[2:] -= surplus.stop - surplus.start
    is_kept = np.ones(len(records.tokens), np.bool_)
    is_kept[surplus] = False
    supervised = None if records.supervised is None else records.supervised[is_kept]
    return replace(records, tokens=records.tokens[is_kept], starts=starts, supervised=supervised)


def beginning(records: ExampleSet) -> ExampleSet:
    """The beginning of the longest text, which is the last."""
    tokens = records.tokens[records.starts[-2] :][:_MOST_TOKENS]
    return replace(
        records.subset(np.array([len(records) - 1])),
        tokens=tokens,
        starts=np.array([0, len(tokens)]),
        supervised=np.ones(len(tokens), np.bool_),
    )


def changed(records: ExampleSet, is_changed_E: npt.NDArray[np.bool_]) -> ExampleSet:
    """The set with other tokens in some records: the end of the longest, in reverse."""
    tokens = records.tokens.copy()
    for place in np.flatnonzero(is_changed_E):
        first, last = records.starts[place : place + 2]
        tokens[first:last] = records.tokens[::-1][: last - first]
    return replace(records, tokens=tokens)
