"""Near duplicates: MinHash proposes pairs, the exact Jaccard similarity of their shingles decides.

A function is the set of all runs of five tokens of its code, comments left out, so that a copy with
another comment or layout is the same and a renamed variable changes the five runs around it.
Locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3)
with 18 bands of 7 rows proposes a pair of similarity s with probability 1 - (1 - s^7)^18: 0.986 at
0.8, 0.9999 at 0.9. Proposed pairs are verified, so none is reported that is not one.

Shapes: E functions examined, of all splits; P permutations.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from data.audit.columns import Columns, chosen, records_at, tracked
from data.audit.facts import HashArray, NearFacts, NearPairs
from data.text.scanner import without_comments

THRESHOLD = 0.8
SHINGLE = 5
NUM_PERM = 128
_BANDS, _ROWS = 18, 7
# Signatures this far apart are not worth the exact comparison: three standard deviations of the
# estimate, sqrt(0.8 * 0.2 / 128) each.
_ESTIMATE_FLOOR = THRESHOLD - 3 * 0.0354
# A function with so many twins of its own split and label is not indexed: those twins stand for it
# from then on, so that a thousand copies cost a thousand times this, not a thousand squared.
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


@dataclass
class _Found:
    """Pairs as they are met."""

    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)  # of split numbers
    opposite: Counter[tuple[int, int]] = field(default_factory=Counter)
    functions: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    best: dict[tuple[int, int], list[tuple[float, int, int]]] = field(default_factory=dict)
    fix_pairs: Counter[int] = field(default_factory=Counter)


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
        seed: Of that sample.
        show_progress: Draw a bar on stderr.
    """
    begin = time.perf_counter()
    places = [chosen(split, limit, seed) for split in splits]
    examined = _Examined(
        np.repeat(np.arange(len(splits)), [len(p) for p in places]),
        np.concatenate(places),
        np.concatenate([s.digest_N[p] for s, p in zip(splits, places, strict=True)]),
        np.concatenate([s.target_N[p] for s, p in zip(splits, places, strict=True)]),
        np.concatenate([s.group_N["commit"][p] for s, p in zip(splits, places, strict=True)]),
    )
    found, parent = _search(splits, places, examined, show_progress)
    num = len(examined.split_E)
    return NearFacts(
        method=METHOD,
        examined={
            split.name: (len(p), len(split.digest_N))
            for split, p in zip(splits, places, strict=True)
        },
        pairs=_pair_facts(splits, examined, found),
        num_fix_pairs={split.name: found.fix_pairs[i] for i, split in enumerate(splits)},
        clusters=_clusters(parent, examined.split_E),
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
    splits: Sequence[Columns],
    places: list[npt.NDArray[np.int64]],
    examined: _Examined,
    show_progress: bool,
) -> tuple[_Found, list[int]]:
    from datasketch import MinHash, MinHashLSH

    num = len(examined.split_E)
    codes = (
        sample.code
        for split, chosen_places in zip(splits, places, strict=True)
        for sample in records_at(split, chosen_places)
    )
    lsh = MinHashLSH(num_perm=NUM_PERM, params=(_BANDS, _ROWS))
    sets: list[ShingleArray] = []
    signature_EP = np.zeros((num, NUM_PERM), dtype=np.uint32)
    found, parent = _Found(), list(range(num))

    def all_shingles() -> Iterator[list[int]]:
        for code in codes:
            sets.append(shingles(code))
            yield sets[-1].tolist()

    stream = MinHash.generator(all_shingles(), num_perm=NUM_PERM, hashfunc=index)
    for e, minhash in enumerate(tracked(stream, "near duplicates", num, show_progress)):
        if not len(sets[e]):
            continue
        signature_EP[e] = minhash.hashvalues
        crowd = 0
        for other, similarity in _twins(e, lsh.query(minhash), signature_EP, sets):
            crowd += _record(e, other, similarity, examined, found, parent)
        if crowd < _CROWD:
            lsh.insert(e, minhash, check_duplication=False)
    return found, parent


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


def _record(
    e: int, other: int, similarity: float, examined: _Examined, found: _Found, parent: list[int]
) -> bool:
    """Count a pair where it belongs; True when both are of one split and label."""
    split, first = int(examined.split_E[e]), int(examined.split_E[other])  # first <= split
    opposite = bool(examined.target_E[e] != examined.target_E[other])
    commit = examined.commit_E[e]
    if split == first and opposite and commit and commit == examined.commit_E[other]:
        found.fix_pairs[split] += 1
        return False
    _union(parent, e, other)
    if examined.digest_E[e] != examined.digest_E[other]:
        key = (first, split)
        found.pairs[key] += 1
        found.opposite[key] += opposite
        found.functions.setdefault(key, set()).update((e, other))
        best = found.best.setdefault(key, [])
        best.append((-similarity, other, e))
        if len(best) > 20 * _LISTED:
            best[:] = sorted(best)[:_LISTED]
    return split == first and not opposite


def _pair_facts(splits: Sequence[Columns], examined: _Examined, found: _Found) -> list[NearPairs]:
    keys = [(i, i) for i in range(len(splits))]
    keys += [(i, j) for i in range(len(splits)) for j in range(i + 1, len(splits))]
    facts = []
    for key in keys:
        members = np.array(sorted(found.functions.get(key, set())), dtype=np.int64)
        names = [splits[i].name for i in dict.fromkeys(key)]
        counts = {splits[i].name: int((examined.split_E[members] == i).sum()) for i in key}
        examples = [
            f"{_origin(splits, examined, one)} ~ {_origin(splits, examined, other)} ({-minus:.2f})"
            for minus, one, other in sorted(found.best.get(key, []))[:_LISTED]
        ]
        facts.append(
            NearPairs("/".join(names), found.pairs[key], found.opposite[key], counts, examples)
        )
    return facts


def _origin(splits: Sequence[Columns], examined: _Examined, e: int) -> str:
    samples = splits[int(examined.split_E[e])].samples
    return samples[int(examined.place_E[e])].origin


def _union(parent: list[int], one: int, other: int) -> None:
    parent[_root(parent, one)] = _root(parent, other)


def _root(parent: list[int], e: int) -> int:
    while parent[e] != e:
        parent[e] = parent[parent[e]]
        e = parent[e]
    return e


def _clusters(parent: list[int], split_E: npt.NDArray[np.int64]) -> dict[str, int]:
    members: dict[int, list[int]] = {}
    for e in range(len(parent)):
        members.setdefault(_root(parent, e), []).append(e)
    clusters = [cluster for cluster in members.values() if len(cluster) > 1]
    return {
        "num_clusters": len(clusters),
        "num_functions": sum(map(len, clusters)),
        "largest": max(map(len, clusters), default=0),
        "num_across_splits": sum(len(set(split_E[c].tolist())) > 1 for c in clusters),
    }
