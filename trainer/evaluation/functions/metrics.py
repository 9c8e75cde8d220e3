"""Binary classification, measured: metrics, the decision threshold and bootstrap intervals.

scikit-learn computes the reported values. Resamples use the same metrics written over counts
(resampling.py), because a call of scikit-learn costs 18-53 ms for each of 1,000 resamples; the
tests hold both equal.

Shapes: N functions, R resamples, K candidate thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.measures import Scored, measures_of
from trainer.evaluation.resampling import (
    FloatArray,
    IntArray,
    cluster_ids,
    f1_from_counts,
    mcc_from_counts,
    percentile_interval,
    two_class_resamples,
    weighted_roc_auc,
)


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals by metric name, and how the resamples behind them were drawn.

    `intervals` is empty when nothing can be resampled: one class only, or a single cluster.
    `num_redrawn` counts the resamples thrown away and drawn again because they held one class only.
    """

    intervals: dict[str, tuple[float, float]]
    num_clusters: int
    num_redrawn: int


@dataclass(frozen=True)
class AucDifference:
    """ROC AUC of a predictor minus that of a baseline, with its paired interval."""

    difference: float
    low: float
    high: float


def classification_metrics(
    scores_N: npt.ArrayLike, labels_N: npt.ArrayLike, threshold: float
) -> dict[str, Any]:
    """Counts and every measure of functions; a score >= threshold predicts the positive class 1.

    ROC AUC and average precision are None, undefined, with one class. By convention precision is 0
    without a positive prediction, recall 0 without a positive label, F1 0 where both hold, and MCC
    0 where a class or an answer is missing.

    Args:
        scores_N: P(class 1) in [0, 1], computed in float64.
        labels_N: 0 or 1.
        threshold: Chosen on validation data, never on the data measured here.

    Raises:
        ValueError: No function, unequal lengths, a score that is NaN or outside [0, 1], a label
            that is not 0 or 1, or a threshold that is not finite.
    """
    scored = Scored(*_checked(scores_N, labels_N), float(threshold))
    if not np.isfinite(threshold):
        raise ValueError(f"threshold is {threshold}; it must be a finite number")
    tn, fp, fn, tp = np.bincount(2 * scored.labels_N + scored.predicted_N, minlength=4).tolist()
    return {
        "num": tn + fp + fn + tp,
        "num_positive": tp + fn,
        **{name: measure.function(scored) for name, measure in measures_of("functions").items()},
        "threshold": scored.threshold,
        "tn": tn,
        "fp": fp,
        "fn": fn,
        "tp": tp,
    }


def best_threshold(scores_N: npt.ArrayLike, labels_N: npt.ArrayLike) -> float:
    """Choose the threshold with the highest F1; give it validation data, never test data.

    Candidates are the midpoints between neighbouring distinct scores and 0.0, where everything is
    positive. Equal F1 goes to the higher MCC, then to the value nearest 0.5, then to the lower
    value. O(N log N).

    Returns:
        The threshold, in [0, 1]; 0.5 when one class only is present, because then there is nothing
        to choose by.

    Raises:
        ValueError: As `classification_metrics`.
    """
    scores_N, labels_N = _checked(scores_N, labels_N)
    total, positives = np.float64(len(labels_N)), np.float64(labels_N.sum())
    if positives in (0, total):
        return 0.5
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    first_K = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
    tp_below_N = np.cumsum(labels_N[order_N]) - labels_N[order_N]
    tp_K, predicted_K = positives - tp_below_N[first_K], total - first_K
    lower, upper = sorted_N[first_K[:-1]], sorted_N[first_K[1:]]
    middle = (lower + upper) / 2
    # Between two adjacent floats there is no midpoint: it rounds to the lower one, which must stay
    # negative.
    candidates_K = np.r_[0.0, np.where(middle > lower, middle, upper)]
    f1_K = f1_from_counts(tp_K, predicted_K, positives)
    # Rounded, so that equal correlations reached through different counts do compare equal.
    mcc_K = np.round(mcc_from_counts(tp_K, predicted_K, positives, total), 12)
    best = np.lexsort((candidates_K, np.abs(candidates_K - 0.5), -mcc_K, -f1_K))[0]
    return float(candidates_K[best])


def bootstrap(
    scores_N: npt.ArrayLike,
    labels_N: npt.ArrayLike,
    threshold: float,
    groups_N: Sequence[object] | npt.NDArray[np.generic] | None,
    num_resamples: int,
    seed: int,
    level: float,
) -> Bootstrap:
    """Resample whole groups and take the percentiles of each metric.

    Functions of one commit are alike, so drawing them one by one would make the intervals too
    narrow. The threshold stays fixed: the intervals do not include the uncertainty of choosing it.

    Args:
        scores_N: P(class 1) in [0, 1].
        labels_N: 0 or 1.
        threshold: Positive when score >= threshold.
        groups_N: Drawn together when equal, e.g. commits; None draws each function on its own.
        num_resamples: Resamples that hold both classes; one-class draws are redrawn and counted.
        seed: Of the draws; equal seeds give equal intervals.
        level: Share of the resamples inside the interval.

    Raises:
        ValueError: As `classification_metrics`, or a group missing, or num_resamples or level out
            of range.
    """
    scores_N, labels_N = _checked(scores_N, labels_N)
    _check_resampling(num_resamples, level)
    cluster_N = cluster_ids(groups_N, len(labels_N))
    num_clusters = int(cluster_N.max()) + 1
    if not _can_resample(labels_N, num_clusters):
        return Bootstrap({}, num_clusters, 0)
    scored = Scored(scores_N, labels_N, threshold)
    resampled = {n: m.resampled for n, m in measures_of("functions").items() if m.resampled}
    chunks: dict[str, list[FloatArray]] = {name: [] for name in resampled}
    num_redrawn = 0
    for weights_RN, redrawn in two_class_resamples(labels_N, cluster_N, num_resamples, seed):
        num_redrawn += redrawn
        for name, measure in resampled.items():
            chunks[name].append(measure(scored, weights_RN))
    intervals = {name: percentile_interval(np.concatenate(c), level) for name, c in chunks.items()}
    return Bootstrap(intervals, num_clusters, num_redrawn)


def paired_auc_difference(
    scores_N: npt.ArrayLike,
    baseline_N: npt.ArrayLike,
    labels_N: npt.ArrayLike,
    groups_N: Sequence[object] | npt.NDArray[np.generic] | None,
    num_resamples: int,
    seed: int,
    level: float,
) -> AucDifference | None:
    """Take ROC AUC of `scores_N` minus that of `baseline_N` on the same resamples.

    Both see the same draws, so what makes a test set easy or hard for both cancels; two separate
    intervals may overlap where this one excludes 0.

    Returns:
        The difference with its percentile interval, or None when one class or one cluster only is
        present.

    Raises:
        ValueError: As `bootstrap`.
    """
    scores_N, labels_N = _checked(scores_N, labels_N)
    baseline_N, _ = _checked(baseline_N, labels_N)
    _check_resampling(num_resamples, level)
    cluster_N = cluster_ids(groups_N, len(labels_N))
    if not _can_resample(labels_N, int(cluster_N.max()) + 1):
        return None
    differences = [
        weighted_roc_auc(scores_N, labels_N, w_RN) - weighted_roc_auc(baseline_N, labels_N, w_RN)
        for w_RN, _ in two_class_resamples(labels_N, cluster_N, num_resamples, seed)
    ]
    whole_1N = np.ones((1, len(labels_N)))
    auc, baseline_auc = (weighted_roc_auc(s, labels_N, whole_1N)[0] for s in (scores_N, baseline_N))
    low, high = percentile_interval(np.concatenate(differences), level)
    return AucDifference(float(auc - baseline_auc), low, high)


def _can_resample(labels_N: IntArray, num_clusters: int) -> bool:
    return num_clusters > 1 and 0 < labels_N.sum() < len(labels_N)


def _check_resampling(num_resamples: int, level: float) -> None:
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; it must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, e.g. 0.95")


def _checked(scores_N: npt.ArrayLike, labels_N: npt.ArrayLike) -> tuple[FloatArray, IntArray]:
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores have shape {scores.shape} and labels {labels.shape}; give one per function"
        )
    if len(scores) == 0:
        raise ValueError("there is no function to measure; give at least one score and label")
    is_bad = ~((scores >= 0) & (scores <= 1))
    if is_bad.any():
        num_nan, first = int(np.isnan(scores).sum()), int(np.flatnonzero(is_bad)[0])
        raise ValueError(
            f"{int(is_bad.sum())} of {len(scores)} scores are not probabilities ({num_nan} are "
            f"NaN), the first at index {first}: {scores[first]}; scores must lie in [0, 1]"
        )
    is_bad = (labels != 0) & (labels != 1)
    if is_bad.any():
        first = int(np.flatnonzero(is_bad)[0])
        raise ValueError(f"label at index {first} is {labels[first]}; binary labels are 0 or 1")
    return scores, labels.astype(np.int64)
