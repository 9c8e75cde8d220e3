"""Metrics of a binary classifier, the choice of its threshold, and its temperature.

Shapes: N functions, K candidate thresholds.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config.threshold import ThresholdRule
from trainer.evaluation.measures import measured
from trainer.evaluation.predictors import Scored
from trainer.evaluation.resampling import FloatArray, IntArray, f1_from_counts, mcc_from_counts

HIGHEST_F1 = ThresholdRule()
_ROUNDING = 1e-12


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


def choose_threshold(
    scores_N: npt.ArrayLike, labels_N: npt.ArrayLike, rule: ThresholdRule = HIGHEST_F1
) -> tuple[float, bool]:
    """Choose a threshold by its rule on validation data, never on test data.

    Candidates are the midpoints between neighbouring distinct scores, 0.0, where everything is
    positive, and one above the highest score, where nothing is. Of equally good ones the higher
    MCC wins, then the value nearest 0.5, then the lower value. O(N log N).

    Returns:
        The threshold, in [0, 1] or just above 1, and whether it keeps the rate of its rule; with
        one class there is nothing to choose by: 0.5 and False. Where no threshold has the
        precision of its rule, the one with the highest is taken.

    Raises:
        ValueError: As `classification_metrics`.
    """
    scores_N, labels_N = _checked(scores_N, labels_N)
    total, positives = np.float64(len(labels_N)), np.float64(labels_N.sum())
    if rule.kind == "fixed":
        return rule.value, True
    if positives in (0, total):
        return 0.5, False
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    first_K = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
    tp_below_N = np.cumsum(labels_N[order_N]) - labels_N[order_N]
    tp_K, predicted_K = positives - tp_below_N[first_K], total - first_K
    lower, upper = sorted_N[first_K[:-1]], sorted_N[first_K[1:]]
    middle = (lower + upper) / 2
    # The midpoint of two adjacent floats rounds to the lower one, which must stay negative.
    highest = max((sorted_N[-1] + 1) / 2, np.nextafter(sorted_N[-1], 2))
    candidates_K = np.r_[0.0, np.where(middle > lower, middle, upper), highest]
    tp_K, predicted_K = np.r_[tp_K, 0.0], np.r_[predicted_K, 0.0]
    good_K, allowed_K = _goodness(rule, tp_K, predicted_K, positives, total)
    # Rounded, so that equal correlations from different counts compare equal.
    mcc_K = np.round(mcc_from_counts(tp_K, predicted_K, positives, total), 12)
    best = np.lexsort((candidates_K, np.abs(candidates_K - 0.5), -mcc_K, -good_K))[0]
    return float(candidates_K[best]), bool(allowed_K[best])


def _goodness(
    rule: ThresholdRule,
    tp_K: FloatArray,
    predicted_K: FloatArray,
    positives: np.float64,
    total: np.float64,
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """How good a candidate is by a rule, and whether it keeps the rate of the rule."""
    fp_K = predicted_K - tp_K
    if rule.kind == "fpr":
        is_allowed_K = fp_K <= rule.value * (total - positives) + _ROUNDING
        return np.where(is_allowed_K, tp_K, -1.0), is_allowed_K
    if rule.kind == "recall":
        is_allowed_K = tp_K >= rule.value * positives - _ROUNDING
        return np.where(is_allowed_K, -fp_K, -np.inf), is_allowed_K
    if rule.kind == "precision":
        precision_K = np.divide(tp_K, predicted_K, out=np.zeros_like(tp_K), where=predicted_K > 0)
        is_allowed_K = (precision_K >= rule.value - _ROUNDING) & (predicted_K > 0)
        return np.where(is_allowed_K, 1 + tp_K, precision_K), is_allowed_K
    if rule.kind == "cost":
        return -(rule.value * (positives - tp_K) + fp_K), np.ones(len(tp_K), np.bool_)
    return f1_from_counts(tp_K, predicted_K, positives), np.ones(len(tp_K), np.bool_)


def temperature_of(scores_N: npt.ArrayLike, labels_N: npt.ArrayLike) -> float:
    """The temperature that makes scores fit labels best (Guo et al. 2017, section 4.2).

    It minimises the negative log-likelihood of sigmoid(logit(score) / T) over T in [0.05, 20];
    1.0 with one class, where the best temperature has no bound.
    """
    from scipy.optimize import minimize_scalar

    scores_N, labels_N = _checked(scores_N, labels_N)
    if labels_N.min() == labels_N.max():
        return 1.0
    logit_N = _logit(scores_N)
    sign_N = 2.0 * labels_N - 1

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -sign_N * logit_N / np.exp(log_temperature)).mean())

    bounds = (np.log(0.05), np.log(20.0))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def at_temperature(scores_N: FloatArray, temperature: float) -> FloatArray:
    """Scores as probabilities: sigmoid(logit(score) / temperature)."""
    return np.asarray(1 / (1 + np.exp(-_logit(scores_N) / temperature)))


def _logit(scores_N: FloatArray) -> FloatArray:
    inside_N = np.clip(scores_N, _ROUNDING, 1 - _ROUNDING)
    return np.asarray(np.log(inside_N) - np.log1p(-inside_N))


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
