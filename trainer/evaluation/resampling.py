"""The cluster bootstrap, and the metrics it needs as sums over counts.

A resample is a row of multiplicities: how often each function was drawn. One sort of the scores
then serves every resample, because ROC AUC and average precision are sums over the distinct scores.
A call of scikit-learn would cost 18-53 ms for each of 1,000 resamples; the tests hold both equal.

Shapes: N functions or records, R resamples, G clusters, K distinct scores in ascending order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Counts = FloatArray | np.float64

# Bounds memory: one chunk of multiplicities is 2**21 float64, 16 MiB, whatever the number of
# functions.
MAX_CHUNK_ELEMENTS = 2**21


@dataclass(frozen=True)
class Resampling:
    """How a bootstrap draws.

    Attributes:
        num_resamples: How many are kept.
        seed: Equal seeds give equal draws.
        level: Share of the resamples inside an interval.

    Raises:
        ValueError: num_resamples or level is out of range.
    """

    num_resamples: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_resamples < 1:
            raise ValueError(f"num_resamples is {self.num_resamples}; it must be at least 1")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; it must lie between 0 and 1, e.g. 0.95")


USUAL_DRAWS = Resampling()


@dataclass(frozen=True)
class Bootstrap:
    """Values of predictors on the same resamples.

    Attributes:
        values: R values by (predictor, measure); empty with one class or one cluster.
        num_redrawn: Resamples that held one class only and were drawn again.
        level: Share of the resamples inside an interval.
    """

    values: Mapping[tuple[str, str], FloatArray]
    num_redrawn: int
    level: float

    def intervals(self, predictor: str) -> dict[str, list[float]]:
        """Both ends for each measure of a predictor."""
        return {
            measure: list(percentile_interval(values_R, self.level))
            for (name, measure), values_R in self.values.items()
            if name == predictor
        }

    def difference(self, measure: str, predictor: str, other: str) -> list[float]:
        """Both ends for a measure of one predictor minus that of another.

        Both are of the same draws, so what makes a split easy or hard for both cancels: separate
        intervals may overlap where this one excludes 0.
        """
        difference_R = self.values[predictor, measure] - self.values[other, measure]
        return list(percentile_interval(difference_R, self.level))


def f1_from_counts(tp: FloatArray, predicted: FloatArray, positives: Counts) -> FloatArray:
    """F1 = 2 tp / (predicted + positives), elementwise; 0 where the denominator is 0."""
    return _ratio(2 * tp, predicted + positives)


def mcc_from_counts(
    tp: FloatArray, predicted: FloatArray, positives: Counts, total: Counts
) -> FloatArray:
    """Matthews correlation, elementwise; 0 by convention where one class or one answer is missing.

    With tn, fp and fn written through the margins, tp * tn - fp * fn = tp * total - predicted *
    positives and the denominator is the root of the four margins.
    """
    # One root over both products: the root of a rounded square is exact, so perfect answers give 1.
    variances = (predicted * (total - predicted)) * (positives * (total - positives))
    return _ratio(tp * total - predicted * positives, np.sqrt(variances))


def weighted_roc_auc(
    scores_N: FloatArray, labels_N: IntArray, weights_RN: FloatArray
) -> FloatArray:
    """ROC AUC per resample: the share of (positive, negative) pairs in order, ties half.

    Args:
        scores_N: Higher means more likely positive.
        labels_N: 0 or 1.
        weights_RN: Multiplicities; every row draws both classes.

    Returns:
        One value per resample, shape R (Hanley and McNeil 1982).
    """
    positive_RK, negative_RK = _tallies(scores_N, labels_N, weights_RN)
    below_RK = np.cumsum(negative_RK, axis=1) - negative_RK
    wins_R = (positive_RK * (below_RK + negative_RK / 2)).sum(axis=1)
    return np.asarray(wins_R / (positive_RK.sum(axis=1) * negative_RK.sum(axis=1)))


def weighted_average_precision(
    scores_N: FloatArray, labels_N: IntArray, weights_RN: FloatArray
) -> FloatArray:
    """Average precision per resample: precision at each score, times the recall it adds.

    No interpolation, equal scores enter together: the definition scikit-learn uses.

    Args:
        scores_N: Higher means more likely positive.
        labels_N: 0 or 1.
        weights_RN: Multiplicities; every row draws at least one positive.

    Returns:
        One value per resample, shape R.
    """
    positive_RK, negative_RK = _tallies(scores_N, labels_N, weights_RN)
    positive_RK = positive_RK[:, ::-1]
    tp_RK = np.cumsum(positive_RK, axis=1)
    predicted_RK = tp_RK + np.cumsum(negative_RK[:, ::-1], axis=1)
    precision_RK = _ratio(tp_RK, predicted_RK)
    return np.asarray((positive_RK * precision_RK).sum(axis=1) / tp_RK[:, -1])


def cluster_ids(groups_N: Sequence[object] | npt.NDArray[np.generic] | None, num: int) -> IntArray:
    """Number the groups in order of appearance; None makes every function its own cluster.

    Raises:
        ValueError: There is not one group per function.
    """
    if groups_N is None:
        return np.arange(num, dtype=np.int64)
    if len(groups_N) != num:
        raise ValueError(f"{len(groups_N)} groups for {num} functions; give one group per function")
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(group, len(seen)) for group in groups_N], dtype=np.int64)


def bootstrap(
    values: Mapping[tuple[str, str], Callable[[FloatArray], FloatArray]],
    cluster_N: IntArray,
    draws: Resampling,
    labels_N: IntArray | None = None,
) -> Bootstrap:
    """Compute values on the same resamples of whole clusters.

    Functions of one commit are alike, so drawing them one by one would make intervals too narrow.

    Args:
        values: By (predictor, measure): multiplicities (R, N) -> R values.
        cluster_N: From `cluster_ids`.
        draws: How many, and from which seed.
        labels_N: 0 or 1; with them, resamples of one class are drawn again.
    """
    has_one_class = labels_N is not None and labels_N.min() == labels_N.max()
    if has_one_class or cluster_N.max() == 0:
        return Bootstrap({}, 0, draws.level)
    parts: dict[tuple[str, str], list[FloatArray]] = {key: [] for key in values}
    num_redrawn = 0
    for weights_RN, num_refused in resamples(cluster_N, draws, labels_N):
        num_redrawn += num_refused
        for key, value in values.items():
            parts[key].append(value(weights_RN))
    return Bootstrap({k: np.concatenate(v) for k, v in parts.items()}, num_redrawn, draws.level)


def resamples(
    cluster_N: IntArray, draws: Resampling, labels_N: IntArray | None = None
) -> Iterator[tuple[FloatArray, int]]:
    """Draw whole clusters with replacement until there are `draws.num_resamples` resamples.

    Args:
        cluster_N: From `cluster_ids`.
        draws: Equal draws give equal resamples, so predictors compared on them are paired.
        labels_N: 0 or 1, both present, or drawing would never end; keeps resamples of both.

    Yields:
        Multiplicities of one chunk, shape (R', N), and how many resamples of one class were
        refused for it.
    """
    if labels_N is not None:
        assert 0 < labels_N.sum() < len(labels_N), "resampling needs both classes"
    generator = np.random.default_rng(draws.seed)
    max_rows = max(1, MAX_CHUNK_ELEMENTS // len(cluster_N))
    num_left = draws.num_resamples
    while num_left > 0:
        weights_RN = _draw_clusters(cluster_N, min(num_left, max_rows), generator)
        num_drawn = len(weights_RN)
        if labels_N is not None:
            positives_R = weights_RN @ labels_N.astype(np.float64)
            weights_RN = weights_RN[(positives_R > 0) & (positives_R < weights_RN.sum(axis=1))]
        num_left -= len(weights_RN)
        yield weights_RN, num_drawn - len(weights_RN)


def percentile_interval(values_R: FloatArray, level: float) -> tuple[float, float]:
    """Return the central interval that holds `level` of the values (Efron 1979)."""
    tail = (1 - level) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)


def _draw_clusters(
    cluster_N: IntArray, num_rows: int, generator: np.random.Generator
) -> FloatArray:
    num_clusters = int(cluster_N.max()) + 1
    drawn_RG = generator.integers(num_clusters, size=(num_rows, num_clusters))
    # One bincount for all rows: row r owns the bins r * G ... r * G + G - 1.
    bins_RG = drawn_RG + num_clusters * np.arange(num_rows)[:, None]
    counts = np.bincount(bins_RG.ravel(), minlength=num_rows * num_clusters)
    return counts.reshape(num_rows, num_clusters)[:, cluster_N].astype(np.float64)


def _tallies(
    scores_N: FloatArray, labels_N: IntArray, weights_RN: FloatArray
) -> tuple[FloatArray, FloatArray]:
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    starts_K = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
    sorted_RN = weights_RN[:, order_N]
    all_RK = np.add.reduceat(sorted_RN, starts_K, axis=1)
    positive_RK = np.add.reduceat(sorted_RN * labels_N[order_N], starts_K, axis=1)
    return positive_RK, all_RK - positive_RK


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    out = np.zeros(np.broadcast(numerator, denominator).shape)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
