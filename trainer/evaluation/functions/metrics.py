"""Metrics of a binary classifier, and the choice of its threshold.

Shapes: N functions, K candidate thresholds.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.measures import Scored, measured
from trainer.evaluation.resampling import FloatArray, IntArray, f1_from_counts, mcc_from_counts


def classification_metrics(
    scores_N: npt.ArrayLike, labels_N: npt.ArrayLike, threshold: float
) -> dict[str, Any]:
    """Counts and every measure of functions; a score >= threshold predicts the positive class 1.

    With one class ROC AUC and average precision are None. By convention precision is 0 without a
    positive prediction, recall 0 without a positive label, F1 0 where both hold, and MCC 0 where a
    class or an answer is missing.

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
        **measured("functions", scored),
        "threshold": scored.threshold,
        "tn": tn,
        "fp": fp,
        "fn": fn,
        "tp": tp,
    }


def best_threshold(scores_N: npt.ArrayLike, labels_N: npt.ArrayLike) -> float:
    """Choose the threshold with the highest F1 on validation data, never on test data.

    Candidates are the midpoints between neighbouring distinct scores and 0.0, where everything is
    positive. At equal F1 the higher MCC wins, then the value nearest 0.5, then the lower value.
    O(N log N).

    Returns:
        The threshold, in [0, 1]; 0.5 with one class, which gives nothing to choose by.

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
    # The midpoint of two adjacent floats rounds to the lower one, which must stay negative.
    candidates_K = np.r_[0.0, np.where(middle > lower, middle, upper)]
    f1_K = f1_from_counts(tp_K, predicted_K, positives)
    # Rounded, so that equal correlations from different counts compare equal.
    mcc_K = np.round(mcc_from_counts(tp_K, predicted_K, positives, total), 12)
    best = np.lexsort((candidates_K, np.abs(candidates_K - 0.5), -mcc_K, -f1_K))[0]
    return float(candidates_K[best])


def _checked(scores_N: npt.ArrayLike, labels_N: npt.ArrayLike) -> tuple[FloatArray, IntArray]:
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores have shape {scores.shape} and labels {labels.shape}; give one per function"
        )
    if len(scores) == 0:
        raise ValueError("there are no functions to measure; give at least one score and label")
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
