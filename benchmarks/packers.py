"""Packing as others do it: their own functions where installed, otherwise written after them.

Each takes lengths (none above the capacity) and a capacity and gives rows. "reimplemented" keeps
the published algorithm with its chunk size and its order, so its rows and its complexity.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np

from benchmarks.lengths import Ints, Packed

_CHUNK = 1000  # what datasets.map hands to TRL and LLaMA-Factory, and ms-swift to binpacking
_AXOLOTL_GROUP = 100_000
_AXOLOTL_MOST = 200  # examples of a row


def trl_bfd(lengths: Ints, capacity: int, chunk: int = _CHUNK) -> Packed:
    """TRL's own _pack_bfd on arrow tables, as pack_dataset maps it; one byte a token."""
    import pyarrow as pa
    from trl.data_utils import _pack_bfd

    ends = np.cumsum(lengths)
    offsets = pa.array(np.append(0, ends), pa.int64())
    tokens = pa.LargeListArray.from_arrays(offsets, pa.array(np.zeros(ends[-1], np.uint8)))
    table = pa.table({"input_ids": tokens})
    packed, sizes = [], []
    for first in range(0, len(lengths), chunk):
        column = _pack_bfd(table.slice(first, chunk), capacity)["seq_lengths"].combine_chunks()
        packed.append(column.flatten().to_numpy())
        sizes.append(column.value_lengths().to_numpy())
    return Packed(np.concatenate(packed), np.append(0, np.cumsum(np.concatenate(sizes))))


def trl_bfd_whole(lengths: Ints, capacity: int) -> Packed:
    """The same on one batch; users get this only from the private function."""
    return trl_bfd(lengths, capacity, chunk=len(lengths))


def llama_factory(lengths: Ints, capacity: int) -> Packed:
    """Greedy knapsack on chunks of 1,000: each row takes the longest that fits, again and again."""
    rows: list[list[int]] = []
    for first in range(0, len(lengths), _CHUNK):
        ids_of = defaultdict(list)
        for example, length in enumerate(lengths[first : first + _CHUNK].tolist(), first):
            ids_of[length].append(example)
        left = sorted(lengths[first : first + _CHUNK].tolist())
        while left:
            row, space = [], capacity
            while place := bisect_right(left, space):
                length = left.pop(place - 1)
                space -= length
                row.append(ids_of[length].pop())
            rows.append(row)
    return _packed(rows, lengths)


def axolotl(lengths: Ints, capacity: int) -> Packed:
    """First fit in the given order, on groups of 100,000, at most 200 examples a row (numba)."""
    first_fit = _compiled_first_fit()
    parts = [
        first_fit(lengths[first : first + _AXOLOTL_GROUP], capacity, _AXOLOTL_MOST)
        for first in range(0, len(lengths), _AXOLOTL_GROUP)
    ]
    num_rows = np.append(0, np.cumsum([part.max() + 1 for part in parts]))
    row_of = np.concatenate([part + num for part, num in zip(parts, num_rows[:-1], strict=True)])
    ids = np.argsort(row_of, kind="stable")
    return Packed(lengths[ids], np.append(0, np.cumsum(np.bincount(row_of))), ids)


@cache
def _compiled_first_fit() -> Callable[[Ints, int, int], Ints]:
    from numba import njit

    compiled: Callable[[Ints, int, int], Ints] = njit(_first_fit)
    return compiled


def _first_fit(lengths: Ints, capacity: int, most: int) -> Ints:
    """Row of each example; a plain scan over all open rows, compiled by numba."""
    row_of = np.empty(len(lengths), np.int64)
    spaces = np.empty(len(lengths), np.int64)
    sizes = np.zeros(len(lengths), np.int64)
    num_rows = 0
    for example in range(len(lengths)):
        row = 0
        while row < num_rows and (spaces[row] < lengths[example] or sizes[row] >= most):
            row += 1
        if row == num_rows:
            spaces[row] = capacity
            num_rows += 1
        spaces[row] -= lengths[example]
        sizes[row] += 1
        row_of[example] = row
    return row_of


def ms_swift(lengths: Ints, capacity: int) -> Packed:
    """binpacking.to_constant_volume on 1,000 more at a time; the last row waits for the next."""
    from binpacking import to_constant_volume

    waiting: list[tuple[int, int]] = []
    rows: list[list[int]] = []
    items = list(enumerate(lengths.tolist()))
    for first in range(0, len(items), _CHUNK):
        bins = to_constant_volume(waiting + items[first : first + _CHUNK], capacity, weight_pos=1)
        waiting = bins.pop() if first + _CHUNK < len(items) else []
        rows += [[example for example, _ in bin_] for bin_ in bins]
    return _packed(rows, lengths)


def torchtune(lengths: Ints, capacity: int) -> Packed:
    """Next fit: a row is closed by the first example that does not fit."""
    rows: list[list[int]] = [[]]
    space = capacity
    for example, length in enumerate(lengths.tolist()):
        if length > space:
            rows.append([])
            space = capacity
        rows[-1].append(example)
        space -= length
    return _packed(rows, lengths)


def _packed(rows: Sequence[Sequence[int]], lengths: Ints) -> Packed:
    ids = np.fromiter((example for row in rows for example in row), np.int64, len(lengths))
    return Packed(lengths[ids], np.append(0, np.cumsum([len(row) for row in rows])), ids)


# name -> (function, what must be installed, note)
PEERS: dict[str, tuple[Callable[[Ints, int], Packed], str | None, str]] = {
    "TRL bfd": (trl_bfd, "trl", "its function, 1,000 rows a batch"),
    "TRL bfd, one batch": (trl_bfd_whole, "trl", "its function"),
    "LLaMA-Factory knapsack": (llama_factory, None, "reimplemented"),
    "axolotl multipack": (axolotl, "numba", "reimplemented with numba"),
    "ms-swift binpack": (ms_swift, "binpacking", "its library, wrapper reimplemented"),
    "torchtune next-fit": (torchtune, None, "reimplemented"),
}


def installed(name: str) -> bool:
    """Whether the package a peer needs can be imported."""
    needs = PEERS[name][1]
    return needs is None or find_spec(needs) is not None
