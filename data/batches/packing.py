"""Whole functions into rows of a fixed capacity: best-fit decreasing, a pure function."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# How to give examples new partners, judged by the share of pairs that meet again in the next epoch.
# Measured on 1,000 to 1,000,000 lengths resampled from real functions, rows of 512 to 4,096 tokens:
# exchanging equal lengths leaves 1.8 to 7 pairs for each distinct length among a hundred examples,
# so 140 examples of each keep the share below 5%; ten random windows leave at most 5%, and so does
# a blur of 16 / sqrt(n). Its limit of 0.4 leaves 8%: fewer than 1,600 examples cannot be mixed
# further without wasting rows.
_EXAMPLES_PER_LENGTH = 140
_LARGE = 90_000  # from here on windows are quicker than the blur and waste as little
_WINDOWS = 10
_WINDOW = 16_384

Integers = npt.NDArray[np.integer[Any]]
Contents = tuple["Contents", int, int] | None  # earlier contents of a row, a run, how many of it


@dataclass(frozen=True)
class Rows:
    """Which examples share a row: row r holds examples[starts[r]:starts[r + 1]]."""

    examples: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    def row(self, index: int) -> npt.NDArray[np.int64]:
        """Examples of one row, in their order inside it."""
        return self.examples[self.starts[index] : self.starts[index + 1]]


def pack(
    lengths: Integers,
    capacity: int,
    rng: np.random.Generator | None = None,
    window: int | None = None,
) -> Rows:
    """Put every example into exactly one row, each row at most `capacity` tokens.

    Best-fit decreasing (Johnson 1974): longest first, each into the fullest row that still takes
    it. With an rng, examples have new partners in every epoch, and rows come in random order:
    examples of equal length change places, which costs no row. If few lengths are equal, that would
    change little: a large set is then packed in random windows, for at most 0.1% more rows, and a
    small set by slightly blurred lengths, for at most 0.8%.

    Args:
        lengths: Tokens of each example, 1 to capacity; any integer type.
        rng: Source of the order; None keeps the examples' own order (evaluation).
        window: Pack this many examples at a time, drawn at random; None packs all at once.

    Raises:
        ValueError: A length outside 1..capacity.
    """
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= capacity):
        raise ValueError(f"lengths {lengths.min()}..{lengths.max()} do not fit rows of {capacity}")
    # 16 bits if they suffice: numpy then sorts by radix; ascending space means longest first
    spaces = np.subtract(capacity, lengths, dtype=np.int64).astype(np.min_scalar_type(capacity))
    order: Integers = np.arange(len(lengths), dtype=np.int32 if len(lengths) < 2**31 else np.int64)
    sort_keys: npt.NDArray[Any] = spaces
    if rng is not None:
        rng.shuffle(order)
        if _equal_lengths_are_rare(spaces):
            if len(order) >= _LARGE:
                window = min(window or _WINDOW, len(order) // _WINDOWS)
            else:
                sort_keys = rng.normal(-np.log(lengths), _blur(len(order)))
    window = window or max(1, len(order))
    windows = (order[first : first + window] for first in range(0, len(order), window))
    sizes = [_pack_window(part, spaces, sort_keys, capacity) for part in windows]
    return _as_rows(order, sizes, rng)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several sets, one set after the other."""
    sizes = np.concatenate([np.diff(rows.starts) for rows in parts])
    starts = np.append(0, np.cumsum(sizes, dtype=np.int64))
    return Rows(np.concatenate([rows.examples for rows in parts]), starts)


def one_per_row(num_examples: int, rng: np.random.Generator | None = None) -> Rows:
    """Rows of a single example, for data.packing=false."""
    order = np.arange(num_examples) if rng is None else rng.permutation(num_examples)
    return Rows(order.astype(np.int64), np.arange(num_examples + 1, dtype=np.int64))


def _equal_lengths_are_rare(spaces: Integers) -> bool:
    """Whether exchanging equal lengths would leave more than 5% of the pairs in place."""
    num_lengths = int(np.count_nonzero(np.bincount(spaces)))
    return len(spaces) < _EXAMPLES_PER_LENGTH * num_lengths


def _blur(num_examples: int) -> float:
    """Standard deviation of the logarithm of a length: the more examples, the less is needed."""
    return min(0.4, 16 / math.sqrt(num_examples))


def _pack_window(
    examples: Integers, spaces: Integers, sort_keys: npt.NDArray[Any], capacity: int
) -> Integers:
    """Put the examples in the order of their rows, in place; return how many each row holds."""
    longest_first = examples[np.argsort(sort_keys[examples], kind="stable")]
    runs = _runs(spaces[longest_first], capacity)
    return _lay_out(_best_fit(runs, capacity), runs, longest_first, out=examples)


def _runs(spaces: Integers, capacity: int) -> list[tuple[int, int]]:
    """(length, count) of each stretch of equal lengths."""
    ends = np.append(np.flatnonzero(spaces[1:] != spaces[:-1]), len(spaces) - 1)
    counts = np.diff(ends, prepend=-1)
    lengths = np.subtract(capacity, spaces[ends], dtype=np.int64)
    return list(zip(lengths.tolist(), counts.tolist(), strict=True))


def _best_fit(runs: list[tuple[int, int]], capacity: int) -> list[tuple[int, Contents]]:
    """Rows, equal ones together: (number of rows, contents).

    Rows with the same contents are one group, so a run of equal lengths costs a few steps, not one
    for each example. Groups are stacked by the space left. An integer is the set of spaces in use:
    one shift and the lowest set bit give the smallest sufficient space.
    """
    full: list[tuple[int, Contents]] = []
    groups_with: list[list[tuple[int, Contents]]] = [[] for _ in range(capacity)]
    spaces = 0  # bit s is set while some group has s tokens free
    for run, (length, count) in enumerate(runs):
        while count:
            fitting = spaces >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                num_rows, before = groups_with[space].pop()
            else:
                space, num_rows, before = capacity, count, None
            each = min(space // length, count)  # best fit stays with a row while it takes more
            filled = min(num_rows, count // each)
            if fitting and filled < num_rows:
                groups_with[space].append((num_rows - filled, before))
            if fitting and not groups_with[space]:
                spaces ^= 1 << space
            count -= each * filled
            left, after = space - each * length, (before, run, each)
            if left:
                groups_with[left].append((filled, after))
                spaces |= 1 << left
            else:
                full.append((filled, after))
    return full + [group for groups in groups_with for group in groups]


def _lay_out(
    groups: list[tuple[int, Contents]],
    runs: list[tuple[int, int]],
    longest_first: Integers,
    out: Integers,
) -> Integers:
    """Write the examples of every row, one row after the other; return how many each row holds."""
    next_of = [0, *np.cumsum([count for _, count in runs]).tolist()]
    start, row_sizes = 0, []
    for num_rows, contents in groups:
        pieces = _longest_first(contents)
        size = sum(each for _, each in pieces)
        rows = out[start : start + num_rows * size].reshape(num_rows, size)
        column = 0
        for run, each in pieces:
            first, next_of[run] = next_of[run], next_of[run] + num_rows * each
            rows[:, column : column + each] = longest_first[first : next_of[run]].reshape(-1, each)
            column += each
        row_sizes.append(size)
        start += num_rows * size
    return np.repeat(np.array(row_sizes, out.dtype), [num_rows for num_rows, _ in groups])


def _longest_first(contents: Contents) -> list[tuple[int, int]]:
    """(run, how many of it) in the order in which they came into the row."""
    pieces = []
    while contents is not None:
        contents, run, each = contents
        pieces.append((run, each))
    return pieces[::-1]


def _as_rows(
    examples: Integers, sizes_of_windows: list[Integers], rng: np.random.Generator | None
) -> Rows:
    """Rows from their numbers of examples; with an rng in random order."""
    sizes = np.concatenate([np.zeros(0, examples.dtype), *sizes_of_windows])
    if rng is None:
        return Rows(examples.astype(np.int64), np.append(0, np.cumsum(sizes, dtype=np.int64)))
    drawn = np.arange(len(sizes), dtype=sizes.dtype)  # 32 bits: rows can be nearly as many
    rng.shuffle(drawn)
    old_starts = (np.cumsum(sizes, dtype=sizes.dtype) - sizes)[drawn]
    sizes = sizes[drawn]
    starts = np.append(0, np.cumsum(sizes, dtype=np.int64))
    shuffled = np.repeat(old_starts - starts[:-1], sizes)
    shuffled += np.arange(len(examples), dtype=examples.dtype)
    shuffled[:] = examples[shuffled]
    return Rows(shuffled, starts)
