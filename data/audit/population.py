"""Who is in each split: classes, groups, weaknesses, lengths.

Shapes: N functions of a split.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from data.audit.columns import Columns
from data.audit.facts import IntArray, SplitPopulation
from data.prepared.splits import GROUPS

_BINS = 36


def length_edges(lengths: Mapping[str, IntArray]) -> list[float]:
    """Edges of bins that grow by a ratio, whole numbers, one for all splits."""
    present = [lengths_N for lengths_N in lengths.values() if len(lengths_N)]
    if not present:
        return []
    low = max(1, min(int(lengths_N.min()) for lengths_N in present))
    high = max(int(lengths_N.max()) for lengths_N in present) + 1
    edges = np.unique(np.geomspace(low, max(high, low + 1), _BINS + 1).round())
    return [float(edge) for edge in edges]


def population(split: Columns, lengths_N: IntArray | None, edges: list[float]) -> SplitPopulation:
    """Facts about one split."""
    target_N, names = split.keys.target_N, split.classes.shown
    return SplitPopulation(
        name=split.name,
        num_functions=len(target_N),
        counts=dict(zip(names, split.classes.counts(target_N), strict=True)),
        num_distinct=len(np.unique(split.keys.code_N)),
        num_fix_pairs=_fix_pairs(split),
        groups={field: len(split.keys.groups(field)) for field in GROUPS},
        lengths=_summary(lengths_N),
        length_auc={} if lengths_N is None else _length_auc(split, lengths_N),
        histogram={} if lengths_N is None else _histogram(split, lengths_N, edges),
    )


def cwe_table(splits: Sequence[Columns]) -> dict[str, dict[str, tuple[int, int]]]:
    """CWE: split: functions, and those of them that are not safe; the most frequent first."""
    totals = Counter[str]()
    counts: dict[str, Counter[tuple[str, bool]]] = {}
    for split in splits:
        is_safe_K, of_split = split.classes.is_safe_K, counts.setdefault(split.name, Counter())
        for (cwe, target), num in split.keys.cwes.items():
            totals[cwe] += num
            of_split[cwe, bool(is_safe_K[target])] += num
    ordered = sorted(totals, key=lambda cwe: (-totals[cwe], cwe))
    return {
        cwe: {n: (c[cwe, True] + c[cwe, False], c[cwe, False]) for n, c in counts.items()}
        for cwe in ordered
    }


def _fix_pairs(split: Columns) -> int:
    """Functions (a commit and a name) that are safe and not."""
    both = np.intersect1d(split.fix_N[split.is_safe_N], split.fix_N[~split.is_safe_N])
    return int((both != 0).sum())


def _summary(lengths_N: IntArray | None) -> dict[str, float]:
    if lengths_N is None or not len(lengths_N):
        return {}
    low, median, p90, p99, high = np.percentile(lengths_N, [0, 50, 90, 99, 100]).tolist()
    mean = float(lengths_N.mean())
    return {"min": low, "median": median, "mean": mean, "p90": p90, "p99": p99, "max": high}


def _length_auc(split: Columns, lengths_N: IntArray) -> dict[str, float]:
    """Chance that a function of a class is longer than one of another, ties halved."""
    from scipy.stats import rankdata

    rank_N, found = rankdata(lengths_N), {}
    for number in split.classes.informative:
        is_held_N = split.of_class(number)
        num = int(is_held_N.sum())
        if 0 < num < len(rank_N):
            above = rank_N[is_held_N].sum() - num * (num + 1) / 2
            found[split.classes.shown[number]] = float(above / (num * (len(rank_N) - num)))
    return found


def _histogram(split: Columns, lengths_N: IntArray, edges: list[float]) -> dict[str, list[int]]:
    if not edges:
        return {}
    clipped_N = np.clip(lengths_N, edges[0], edges[-1])
    return {
        name: np.histogram(clipped_N[split.of_class(number)], bins=edges)[0].tolist()
        for number, name in enumerate(split.classes.shown)
    }
