"""Code as the set of its runs of five tokens, and how alike two sets are.

A copy with another comment or layout has the same set, and a renamed variable changes the runs
around it.
"""

import re
from zlib import crc32

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from data.records import CodeSample
from data.text.scanner import without_comments

SHINGLE = 5
THRESHOLD = 0.8  # of the Jaccard similarity: from here on two functions are near duplicates

ShingleArray = npt.NDArray[np.uint32]
_TOKEN = re.compile(rb"[A-Za-z_$\x80-\xff][\w$\x80-\xff]*|\d[\w.]*|[-+*/%&|^=<>!~?:]+|[^\s\w]")
_ODD = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93,
     0xA0761D6478BD642F], dtype=np.uint64
)  # fmt: skip


def shingles(code: str) -> ShingleArray:
    """Sorted 32-bit digests of the runs of five tokens; a shorter code is one run."""
    text = without_comments(code).encode("utf-8", "surrogatepass")
    ids = [crc32(token) for token in _TOKEN.findall(text)]
    if not ids:
        return np.zeros(0, dtype=np.uint32)
    ids += [0] * (SHINGLE - len(ids))
    mixed = sliding_window_view(np.array(ids, dtype=np.uint64), SHINGLE) @ _ODD
    mixed ^= mixed >> np.uint64(32)
    mixed *= _ODD[1]
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def record_shingles(sample: CodeSample) -> ShingleArray:
    """Those of a function, or of both of a pair, whichever comes first."""
    if not sample.code2:
        return shingles(sample.code)
    return np.union1d(shingles(sample.code), shingles(sample.code2))


def jaccard(one: ShingleArray, other: ShingleArray) -> float:
    """Shared shingles over all shingles."""
    if not len(one) or not len(other):
        return 0.0
    if min(len(one), len(other)) < THRESHOLD * max(len(one), len(other)):
        return 0.0  # cannot reach the threshold
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
