"""Who is in each split: classes, groups, weaknesses, lengths.

Shapes: N functions of a split.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from data.audit.columns import Columns
from data.audit.facts import IntArray, SplitPopulation
from data.prepared.splits import GROUPS

_BINS = 36
CLASSES = ("safe", "vulnerable")


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
    target_N = split.keys.target_N
    return SplitPopulation(
        name=split.name,
        num_functions=len(target_N),
        num_positive=int(target_N.sum()),
        num_distinct=len(np.unique(split.keys.code_N)),
        num_fix_pairs=_fix_pairs(split),
        groups={field: len(split.keys.groups(field)) for field in GROUPS},
        lengths=_summary(lengths_N),
        length_auc=_length_auc(lengths_N, target_N),
        histogram=_histogram(lengths_N, target_N, edges),
    )


def cwe_table(splits: Sequence[Columns]) -> dict[str, dict[str, tuple[int, int]]]:
    """CWE: split: (functions, positives), the most frequent first."""
    totals = Counter[str]()
    for split in splits:
        for (cwe, _), num in split.keys.cwes.items():
            totals[cwe] += num
    ordered = sorted(totals, key=lambda cwe: (-totals[cwe], cwe))
    return {
        cwe: {
            s.name: (s.keys.cwes[cwe, 0] + s.keys.cwes[cwe, 1], s.keys.cwes[cwe, 1]) for s in splits
        }
        for cwe in ordered
    }


def _fix_pairs(split: Columns) -> int:
    """Functions (a commit and a name) with both labels."""
    safe, vulnerable = (split.fix_N[split.keys.target_N == target] for target in (0, 1))
    return int((np.intersect1d(safe, vulnerable) != 0).sum())


def _summary(lengths_N: IntArray | None) -> dict[str, float]:
    if lengths_N is None or not len(lengths_N):
        return {}
    low, median, p90, p99, high = np.percentile(lengths_N, [0, 50, 90, 99, 100]).tolist()
    mean = float(lengths_N.mean())
    return {"min": low, "median": median, "mean": mean, "p90": p90, "p99": p99, "max": high}


def _length_auc(lengths_N: IntArray | None, target_N: npt.NDArray[np.int32]) -> float | None:
    """Chance that a vulnerable function is longer than a safe one, ties halved."""
    if lengths_N is None or len(np.unique(target_N)) < 2:
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(target_N, lengths_N))


def _histogram(
    lengths_N: IntArray | None, target_N: npt.NDArray[np.int32], edges: list[float]
) -> dict[str, list[int]]:
    if lengths_N is None or not edges:
        return {}
    counts = {}
    for target, name in enumerate(CLASSES):
        chosen = np.clip(lengths_N[target_N == target], edges[0], edges[-1])
        counts[name] = [int(count) for count in np.histogram(chosen, bins=edges)[0]]
    return counts
