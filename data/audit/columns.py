"""A split as arrays: one pass over its records, 49 bytes of memory for each function.

Texts are kept as 64-bit digests; among 5 million functions the chance of one collision is below
1e-6. To show a record, the audit reads it again by its index.

Shapes: N functions of a split.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from data.audit.facts import HashArray
from data.prepared.splits import SplitKeys, text_digest
from data.records import CodeSample
from data.text import terminal
from data.text.labels import Classes

_CHUNK = 4096  # records in memory at a time


@dataclass(frozen=True)
class Columns:
    """The values of one split that the audit compares.

    Attributes:
        keys: Digests of code and groups, and the targets.
        fix_N: Digest of commit and function name, 0 without a commit: a function and its repair
            share it.
    """

    name: str
    samples: Sequence[CodeSample]
    keys: SplitKeys
    fix_N: HashArray
    id_N: HashArray
    classes: Classes

    def of_class(self, number: int) -> npt.NDArray[np.bool_]:
        """Which functions hold a class."""
        is_held_N: npt.NDArray[np.bool_] = self.classes.holds_K(number)[self.keys.target_N]
        return is_held_N

    @property
    def is_safe_N(self) -> npt.NDArray[np.bool_]:
        """In which functions nothing was found."""
        is_safe_N: npt.NDArray[np.bool_] = self.classes.is_safe_K[self.keys.target_N]
        return is_safe_N


def read_columns(name: str, samples: Sequence[CodeSample], classes: Classes) -> Columns:
    """Read a split once."""
    keys, fixes, ids = SplitKeys(), array("Q"), array("Q")
    stream = iter(terminal.tracked(samples, f"audit: reading {name}", len(samples)))
    while chunk := list(islice(stream, _CHUNK)):
        keys.append([sample.text for sample in chunk])
        keys.append_groups(chunk)
        ids.extend(text_key(sample.id) for sample in chunk)
        fixes.extend(text_key(f"{s.commit}\n{s.function_name}") if s.commit else 0 for s in chunk)
    fix_N, id_N = np.frombuffer(fixes, np.uint64), np.frombuffer(ids, np.uint64)
    return Columns(name, samples, keys, fix_N, id_N, classes)


def text_key(text: str) -> int:
    """A digest of 64 bits."""
    return int.from_bytes(text_digest(text), "little")


def records_at(columns: Columns, places: npt.NDArray[np.int64]) -> Iterable[CodeSample]:
    """The records at these indices; a whole split is streamed, which is the fastest way."""
    if len(places) == len(columns.samples):
        return columns.samples
    return (columns.samples[int(place)] for place in places)
