"""Near duplicates: MinHash proposes pairs, the exact Jaccard similarity of their shingles decides.

A function is compared by the set of all runs of five tokens in its code, without comments. So a
copy with another comment or layout is equal, and a renamed variable changes the runs around it.
Locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3)
with 18 bands of 7 rows proposes a pair of similarity s with probability 1 - (1 - s^7)^18: 0.986 at
0.8, 0.9999 at 0.9. Proposed pairs are verified, so every reported pair is a true one.

Shapes: E functions examined in all splits; P verified pairs, or permutations in a signature.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import index

import numpy as np
import numpy.typing as npt

from data.audit.columns import Columns, records_at
from data.audit.facts import HashArray, IntArray, NearFacts, NearPairs
from data.batches.sampling import at_most
from data.records import CodeSample
from data.text import terminal
from data.text.shingles import SHINGLE, THRESHOLD, ShingleArray, jaccard, record_shingles

NUM_PERM = 128
_BANDS, _ROWS = 18, 7
# Below this estimate the exact comparison is not worth its time: three standard deviations of the
# estimate, sqrt(0.8 * 0.2 / 128) each.
_ESTIMATE_FLOOR = THRESHOLD - 3 * 0.0354
# A function with this many twins in its own split and with its label is not indexed: the twins
# represent it, so that a thousand copies cost a thousand times this, not a thousand squared.
_CROWD = 16
_LISTED = 1000  # pairs named in audit.json
METHOD = (
    f"MinHash ({NUM_PERM} permutations, {_BANDS} bands of {_ROWS}) over runs of {SHINGLE} code"
    f" tokens without comments; pairs verified by exact Jaccard similarity >= {THRESHOLD}"
)

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Examined:
    """The functions that are compared, those of all splits in one array."""

    split_E: IntArray
    place_E: IntArray
    digest_E: HashArray
    target_E: npt.NDArray[np.int32]
    commit_E: HashArray
    is_safe_E: BoolArray

    def is_fix(self, one_P: IntArray, other_P: IntArray) -> BoolArray:
        """Which pairs are a function and its fix: one split and commit, one of them safe."""
        is_fix_P: BoolArray = self.is_safe_E[one_P] != self.is_safe_E[other_P]
        is_fix_P &= self.commit_E[one_P] != 0
        for values_E in (self.split_E, self.commit_E):
            is_fix_P &= values_E[one_P] == values_E[other_P]
        return is_fix_P

    def is_opposite(self, one_P: IntArray, other_P: IntArray) -> BoolArray:
        """Which pairs have different labels."""
        is_opposite_P: BoolArray = self.target_E[one_P] != self.target_E[other_P]
        return is_opposite_P


def near_duplicates(splits: Sequence[Columns], limit: int) -> NearFacts:
    """Search all splits together.

    Args:
        limit: Most functions of a split to compare; a larger split gets a seeded sample.
    """
    begin = time.perf_counter()
    places = [at_most(limit, len(split.samples)) for split in splits]
    parts = list(zip(splits, places, strict=True))
    examined = _Examined(
        np.repeat(np.arange(len(splits)), [len(p) for p in places]),
        np.concatenate(places),
        np.concatenate([split.keys.code_N[p] for split, p in parts]),
        np.concatenate([split.keys.target_N[p] for split, p in parts]),
        np.concatenate([split.keys.group_N("commit")[p] for split, p in parts]),
        np.concatenate([split.is_safe_N[p] for split, p in parts]),
    )
    num = len(examined.split_E)
    samples = (sample for split, p in parts for sample in records_at(split, p))
    function_2P, similarity_P = _search(
        terminal.tracked(samples, "audit: near duplicates", num), examined
    )
    is_fix_P = examined.is_fix(*function_2P)
    fixes = examined.split_E[function_2P[0, is_fix_P]]
    function_2P, similarity_P = function_2P[:, ~is_fix_P], similarity_P[~is_fix_P]
    return NearFacts(
        method=METHOD,
        examined={split.name: (len(p), len(split.samples)) for split, p in parts},
        pairs=_pair_facts(splits, examined, function_2P, similarity_P),
        num_fix_pairs={split.name: int((fixes == i).sum()) for i, split in enumerate(splits)},
        clusters=_clusters(function_2P, examined.split_E),
        functions_per_second=round(num / max(time.perf_counter() - begin, 1e-9), 1),
    )


def _search(
    samples: Iterable[CodeSample], examined: _Examined
) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Both functions of every verified pair, the earlier one first, and their similarity."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(num_perm=NUM_PERM, params=(_BANDS, _ROWS))
    sets: list[ShingleArray] = []
    signature_EP = np.zeros((len(examined.split_E), NUM_PERM), dtype=np.uint32)
    found: list[tuple[int, int, float]] = []

    def all_shingles() -> Iterator[list[int]]:
        for sample in samples:
            sets.append(record_shingles(sample))
            yield sets[-1].tolist()

    stream = MinHash.generator(all_shingles(), num_perm=NUM_PERM, hashfunc=index)
    for e, minhash in enumerate(stream):
        if not len(sets[e]):
            continue
        signature_EP[e] = minhash.hashvalues
        proposed = np.sort(np.array(lsh.query(minhash), dtype=np.int64))
        estimate = (signature_EP[proposed] == signature_EP[e]).mean(axis=1)
        num_same = 0
        for other in proposed[estimate >= _ESTIMATE_FLOOR].tolist():
            similarity = jaccard(sets[e], sets[other])
            if similarity >= THRESHOLD:
                found.append((other, e, similarity))
                num_same += examined.split_E[other] == examined.split_E[e] and (
                    examined.target_E[other] == examined.target_E[e]
                )
        if num_same < _CROWD:
            lsh.insert(e, minhash, check_duplication=False)
    one_P, other_P, similarity_P = np.array(found, dtype=np.float64).reshape(-1, 3).T
    return np.stack([one_P, other_P]).astype(np.int64), similarity_P


def _pair_facts(
    splits: Sequence[Columns],
    examined: _Examined,
    function_2P: IntArray,
    similarity_P: npt.NDArray[np.float64],
) -> list[NearPairs]:
    """Pairs within each split, then between each two; exact duplicates left out."""
    one_P, other_P = function_2P
    split_2P = examined.split_E[function_2P]
    is_near_P = examined.digest_E[one_P] != examined.digest_E[other_P]
    is_opposite_P = examined.is_opposite(one_P, other_P)

    def origin(e: int) -> str:
        return splits[int(examined.split_E[e])].samples[int(examined.place_E[e])].origin

    facts = []
    numbers = range(len(splits))
    for i, j in [*zip(numbers, numbers, strict=True), *combinations(numbers, 2)]:
        here = np.flatnonzero(is_near_P & (split_2P[0] == i) & (split_2P[1] == j))
        most_alike = np.lexsort((other_P[here], one_P[here], -similarity_P[here]))[:_LISTED]
        member_splits = examined.split_E[np.unique(function_2P[:, here])]
        num_functions = {splits[k].name: int((member_splits == k).sum()) for k in (i, j)}
        examples = [
            f"{origin(one_P[p])} ~ {origin(other_P[p])} ({similarity_P[p]:.2f})"
            for p in here[most_alike]
        ]
        where = "/".join(num_functions)
        num_opposite = int(is_opposite_P[here].sum())
        facts.append(NearPairs(where, len(here), num_opposite, num_functions, examples))
    return facts


def _clusters(function_2P: IntArray, split_E: IntArray) -> dict[str, int]:
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
