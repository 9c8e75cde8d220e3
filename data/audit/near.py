"""Near duplicates: MinHash proposes pairs, the exact Jaccard similarity of their shingles decides.

A function is the set of all runs of five tokens of its code, comments left out, so that a copy with
another comment or layout is the same and a renamed variable changes the five runs around it.
Locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3)
with 18 bands of 7 rows proposes a pair of similarity s with probability 1 - (1 - s^7)^18: 0.986 at
0.8, 0.9999 at 0.9. Proposed pairs are verified, so every reported pair is a true one.

Shapes: E functions examined, of all splits; P verified pairs, in signatures permutations.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import index
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from data.audit.columns import Columns, records_at, tracked
from data.audit.facts import HashArray, NearFacts, NearPairs
from data.batches.sampling import at_most
from data.text.scanner import without_comments

THRESHOLD = 0.8
SHINGLE = 5
NUM_PERM = 128
_BANDS, _ROWS = 18, 7
# Below this estimate the exact comparison is not worth its time: three standard deviations of the
# estimate, sqrt(0.8 * 0.2 / 128) each.
_ESTIMATE_FLOOR = THRESHOLD - 3 * 0.0354
# A function with this many twins of its own split and label is not indexed: those twins represent
# it, so that a thousand copies cost a thousand times this, not a thousand squared.
_CROWD = 16
_LISTED = 1000  # pairs named in audit.json
METHOD = (
    f"MinHash ({NUM_PERM} permutations, {_BANDS} bands of {_ROWS}) over runs of {SHINGLE} code"
    f" tokens without comments; pairs verified by exact Jaccard similarity >= {THRESHOLD}"
)

ShingleArray = npt.NDArray[np.uint32]
_TOKEN = re.compile(rb"[A-Za-z_$\x80-\xff][\w$\x80-\xff]*|\d[\w.]*|[-+*/%&|^=<>!~?:]+|[^\s\w]")
_ODD = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93,
     0xA0761D6478BD642F], dtype=np.uint64
)  # fmt: skip


@dataclass(frozen=True)
class _Examined:
    """The functions looked at, of all splits in one row of arrays."""

    split_E: npt.NDArray[np.int64]
    place_E: npt.NDArray[np.int64]
    digest_E: HashArray
    target_E: npt.NDArray[np.int8]
    commit_E: HashArray


def near_duplicates(
    splits: Sequence[Columns], limit: int, seed: int, show_progress: bool
) -> NearFacts:
    """Search all splits together.

    Args:
        splits: Read columns.
        limit: Functions of a split to look at; of a larger one a seeded sample.
        seed: Draws that sample.
        show_progress: Draw a bar on stderr.
    """
    begin = time.perf_counter()
    places = [at_most(limit, len(split.samples), seed) for split in splits]
    parts = list(zip(splits, places, strict=True))
    examined = _Examined(
        np.repeat(np.arange(len(splits)), [len(p) for p in places]),
        np.concatenate(places),
        np.concatenate([split.digest_N[p] for split, p in parts]),
        np.concatenate([split.target_N[p] for split, p in parts]),
        np.concatenate([split.group_N["commit"][p] for split, p in parts]),
    )
    num = len(examined.split_E)
    codes: Iterable[str] = (sample.code for split, p in parts for sample in records_at(split, p))
    codes = tracked(codes, "near duplicates", num, show_progress)
    function_2P, similarity_P = _search(codes, examined)
    is_fix_P = _is_fix(function_2P, examined)
    fixes = examined.split_E[function_2P[0, is_fix_P]]
    function_2P, similarity_P = function_2P[:, ~is_fix_P], similarity_P[~is_fix_P]
    return NearFacts(
        method=METHOD,
        examined={split.name: (len(p), len(split.digest_N)) for split, p in parts},
        pairs=_pair_facts(splits, examined, function_2P, similarity_P),
        num_fix_pairs={split.name: int((fixes == i).sum()) for i, split in enumerate(splits)},
        clusters=_clusters(function_2P, examined.split_E),
        functions_per_second=round(num / max(time.perf_counter() - begin, 1e-9), 1),
    )


def shingles(code: str) -> ShingleArray:
    """Sorted 32-bit digests of the runs of five tokens; of a shorter code, of all it has."""
    text = without_comments(code).encode("utf-8", "surrogatepass")
    ids = [crc32(token) for token in _TOKEN.findall(text)]
    if not ids:
        return np.zeros(0, dtype=np.uint32)
    ids += [0] * (SHINGLE - len(ids))
    tokens = np.array(ids, dtype=np.uint64)
    num = len(tokens) - SHINGLE + 1
    mixed = np.zeros(num, dtype=np.uint64)
    for offset in range(SHINGLE):
        mixed += tokens[offset : offset + num] * _ODD[offset]
    mixed ^= mixed >> np.uint64(32)
    mixed *= _ODD[1]
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(one: ShingleArray, other: ShingleArray) -> float:
    """Shared shingles over all shingles."""
    if not len(one) or not len(other):
        return 0.0
    if min(len(one), len(other)) < THRESHOLD * max(len(one), len(other)):
        return 0.0  # cannot reach the threshold
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def _search(
    codes: Iterable[str], examined: _Examined
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Both functions, the earlier one first, and the similarity of every verified pair."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(num_perm=NUM_PERM, params=(_BANDS, _ROWS))
    sets: list[ShingleArray] = []
    signature_EP = np.zeros((len(examined.split_E), NUM_PERM), dtype=np.uint32)
    found: list[tuple[int, int, float]] = []

    def all_shingles() -> Iterator[list[int]]:
        for code in codes:
            sets.append(shingles(code))
            yield sets[-1].tolist()

    stream = MinHash.generator(all_shingles(), num_perm=NUM_PERM, hashfunc=index)
    for e, minhash in enumerate(stream):
        if not len(sets[e]):
            continue
        signature_EP[e] = minhash.hashvalues
        twins = list(_twins(e, lsh.query(minhash), signature_EP, sets))
        found += [(other, e, similarity) for other, similarity in twins]
        others = np.array([other for other, _ in twins], dtype=np.int64)
        is_same_E = (examined.split_E[others] == examined.split_E[e]) & (
            examined.target_E[others] == examined.target_E[e]
        )
        if is_same_E.sum() < _CROWD:
            lsh.insert(e, minhash, check_duplication=False)
    one_P, other_P, similarity_P = np.array(found, dtype=np.float64).reshape(-1, 3).T
    return np.stack([one_P, other_P]).astype(np.int64), similarity_P


def _twins(
    e: int, proposed: list[Any], signature_EP: npt.NDArray[np.uint32], sets: list[ShingleArray]
) -> Iterator[tuple[int, float]]:
    """The proposed functions that are twins, with their similarity."""
    others = np.sort(np.array(proposed, dtype=np.int64))
    estimate = (signature_EP[others] == signature_EP[e]).mean(axis=1)
    for other in others[estimate >= _ESTIMATE_FLOOR].tolist():
        similarity = jaccard(sets[e], sets[other])
        if similarity >= THRESHOLD:
            yield other, similarity


def _is_fix(function_2P: npt.NDArray[np.int64], examined: _Examined) -> npt.NDArray[np.bool_]:
    """Which pairs are a function and its fix: one split and commit, opposite labels."""
    split_2P, target_2P = examined.split_E[function_2P], examined.target_E[function_2P]
    commit_2P = examined.commit_E[function_2P]
    is_one_commit_P = (commit_2P[0] == commit_2P[1]) & (commit_2P[0] != 0)
    is_opposite_P = target_2P[0] != target_2P[1]
    is_fix_P: npt.NDArray[np.bool_] = is_one_commit_P & is_opposite_P & (split_2P[0] == split_2P[1])
    return is_fix_P


def _pair_facts(
    splits: Sequence[Columns],
    examined: _Examined,
    function_2P: npt.NDArray[np.int64],
    similarity_P: npt.NDArray[np.float64],
) -> list[NearPairs]:
    """Pairs within each split, then between each two; exact duplicates left out."""
    one_P, other_P = function_2P
    is_near_P = examined.digest_E[one_P] != examined.digest_E[other_P]
    is_opposite_P = examined.target_E[one_P] != examined.target_E[other_P]

    def origin(e: int) -> str:
        return splits[int(examined.split_E[e])].samples[int(examined.place_E[e])].origin

    facts = []
    numbers = range(len(splits))
    for i, j in [*zip(numbers, numbers, strict=True), *combinations(numbers, 2)]:
        is_here_P = (examined.split_E[one_P] == i) & (examined.split_E[other_P] == j)
        here = np.flatnonzero(is_near_P & is_here_P)
        # The most alike first.
        listed = here[np.lexsort((other_P[here], one_P[here], -similarity_P[here]))][:_LISTED]
        member_splits = examined.split_E[np.unique(function_2P[:, here])]
        facts.append(
            NearPairs(
                "/".join(splits[k].name for k in dict.fromkeys((i, j))),
                len(here),
                int(is_opposite_P[here].sum()),
                {splits[k].name: int((member_splits == k).sum()) for k in (i, j)},
                [
                    f"{origin(one_P[p])} ~ {origin(other_P[p])} ({similarity_P[p]:.2f})"
                    for p in listed
                ],
            )
        )
    return facts


def _clusters(function_2P: npt.NDArray[np.int64], split_E: npt.NDArray[np.int64]) -> dict[str, int]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones_P, shape = np.ones(function_2P.shape[1]), (len(split_E), len(split_E))
    _, cluster_E = connected_components(coo_array((ones_P, tuple(function_2P)), shape))
    sizes = np.bincount(cluster_E)
    in_splits = np.bincount(np.unique(np.stack([cluster_E, split_E]), axis=1)[0])
    return {
        "num_clusters": int((sizes > 1).sum()),
        "num_functions": int(sizes[sizes > 1].sum()),
        "largest": int(sizes[sizes > 1].max(initial=0)),
        "num_across_splits": int((in_splits > 1).sum()),
    }
