"""A split as arrays: one pass over its records, 49 bytes of memory for each function.

Texts are kept as 64-bit digests; among 5 million functions the chance of one collision is below
1e-6. Where a person wants to see a record, it is read again by its index.

Shapes: N functions of a split.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data.audit.facts import HashArray
from data.prepared.splits import SplitKeys, text_digest
from data.records import CodeSample

GROUP_FIELDS = ("commit", "project", "cve")
_CHUNK = 4096  # records in memory at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Columns:
    """The values of one split that the audit compares.

    Attributes:
        name: Name of the split.
        samples: The records themselves.
        digest_N: Digest of the code, whitespace collapsed.
        target_N: 0 or 1.
        group_N: By field of GROUP_FIELDS: digest of its value, 0 where it is unknown.
        fix_N: Digest of commit and function name, 0 without a commit: a function and its repair
            share it.
        id_N: Digest of the id.
        cwes: Functions by CWE and target.
    """

    name: str
    samples: Sequence[CodeSample]
    digest_N: HashArray
    target_N: npt.NDArray[np.int8]
    group_N: dict[str, HashArray]
    fix_N: HashArray
    id_N: HashArray
    cwes: Counter[tuple[str, int]]


def read_columns(name: str, samples: Sequence[CodeSample], show_progress: bool) -> Columns:
    """Read a split once."""
    keys, fixes, ids = SplitKeys(), array("Q"), array("Q")
    stream = iter(tracked(samples, f"reading {name}", len(samples), show_progress))
    while chunk := list(islice(stream, _CHUNK)):
        keys.append([sample.code for sample in chunk])
        keys.append_groups(chunk)
        ids.extend(text_key(sample.id) for sample in chunk)
        fixes.extend(text_key(f"{s.commit}\n{s.function_name}") if s.commit else 0 for s in chunk)
    return Columns(
        name,
        samples,
        digest_N=keys.code_N,
        target_N=keys.target_N,
        group_N={field: keys.group_N(field) for field in GROUP_FIELDS},
        fix_N=np.frombuffer(fixes, np.uint64),
        id_N=np.frombuffer(ids, np.uint64),
        cwes=keys.cwes,
    )


def text_key(text: str) -> int:
    """A digest of 64 bits."""
    return int.from_bytes(text_digest(text), "little")


def records_at(columns: Columns, places: npt.NDArray[np.int64]) -> Iterable[CodeSample]:
    """The records at these indices; all of a split are streamed, which is the fastest way."""
    if len(places) == len(columns.samples):
        return columns.samples
    return (columns.samples[int(place)] for place in places)


def tracked(items: Iterable[T], what: str, total: int, show: bool) -> Iterable[T]:
    """The items, with a bar on stderr while they are taken, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not show or not console.is_terminal:
        return items
    return track(items, f"audit: {what}", total=total, console=console, transient=True)
