"""Scores of a split and its labels: what measures are computed from, once and in resamples.

Shapes: N functions, R resamples, C classes, B tenths of [0, 1], K sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.evaluation.resampling import (
    FloatArray,
    IntArray,
    Multiplicities,
    Ranking,
    ResampledRanking,
)

Measured = Literal["functions", "classes", "labels", "tokens"]
NUM_BINS = 10  # of a reliability curve
TOP = 3  # classes of the highest scores


@dataclass(frozen=True)
class Scored:
    """Scores of N functions and their labels; a score >= threshold predicts the class 1."""

    scores_N: FloatArray
    labels_N: IntArray
    threshold: float

    @cached_property
    def predicted_N(self) -> IntArray:
        """0 or 1 for each function."""
        return (self.scores_N >= self.threshold).astype(np.int64)

    @property
    def has_both(self) -> bool:
        """Whether both classes are present."""
        return bool(0 < self.labels_N.sum() < len(self.labels_N))

    @cached_property
    def ranking(self) -> Ranking:
        """The order of the scores."""
        return Ranking(self.scores_N, self.labels_N)

    @cached_property
    def counts(self) -> tuple[np.float64, np.float64, np.float64]:
        """True positives, predicted positives and positives."""
        sums = (self.predicted_N & self.labels_N, self.predicted_N, self.labels_N)
        tp, predicted, positives = (np.float64(one_N.sum()) for one_N in sums)
        return tp, predicted, positives

    @cached_property
    def roc(self) -> tuple[FloatArray, FloatArray]:
        """The false positive rate and the recall at every score."""
        from sklearn.metrics import roc_curve

        alarms_K, recall_K, _ = roc_curve(self.labels_N, self.scores_N, drop_intermediate=False)
        return alarms_K, recall_K

    @cached_property
    def bin_N(self) -> IntArray:
        """The tenth of [0, 1] that holds each score."""
        return np.minimum((self.scores_N * NUM_BINS).astype(np.int64), NUM_BINS - 1)

    @cached_property
    def marks_NK(self) -> FloatArray:
        """What is summed over functions: answers, the squared error, and the error by tenth."""
        predicted_N, labels_N = self.predicted_N, self.labels_N
        error_N = self.scores_N - labels_N
        marks_4N = [predicted_N * labels_N, predicted_N, labels_N, error_N**2]
        error_NB = error_N[:, None] * (self.bin_N[:, None] == np.arange(NUM_BINS))
        return np.concatenate([np.stack(marks_4N, axis=1), error_NB], axis=1, dtype=np.float64)

    def resampled(self, weights_RN: Multiplicities) -> "ResampledScores":
        """The sums of each resample, all with both classes, from multiplicities."""
        return ResampledScores(self, weights_RN)


@dataclass(frozen=True)
class ResampledScores:
    """What the measures of `Scored` need of R resamples, computed once for all of them."""

    scored: Scored
    weights_RN: Multiplicities

    @cached_property
    def ranking(self) -> ResampledRanking:
        """Tallies of the ranking."""
        return self.scored.ranking.resampled(self.weights_RN)

    @cached_property
    def total_R(self) -> FloatArray:
        """Functions."""
        return np.asarray(self.weights_RN.sum(axis=1), dtype=np.float64)

    @cached_property
    def sums_KR(self) -> FloatArray:
        """Sums of `Scored.marks_NK`; float32 would round errors by how many resamples are taken."""
        return np.asarray((self.weights_RN.astype(np.float64) @ self.scored.marks_NK).T)

    @property
    def counts(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """True positives, predicted positives and positives."""
        tp_R, predicted_R, positives_R = self.sums_KR[:3]
        return tp_R, predicted_R, positives_R


@dataclass(frozen=True)
class ClassScored:
    """Scores of functions for each class, and which classes hold.

    Where one class holds, the highest score is predicted, else every score that reaches the
    threshold of its class.
    """

    scores_NC: FloatArray
    holds_NC: npt.NDArray[np.bool_]
    is_one: bool
    threshold_C: Sequence[float] | float = 0.5

    @property
    def measured(self) -> Measured:
        """The kind of its measures."""
        return "classes" if self.is_one else "labels"

    @cached_property
    def predicted_NC(self) -> npt.NDArray[np.bool_]:
        """Which classes are predicted."""
        if not self.is_one:
            return self.scores_NC >= np.array(self.threshold_C)
        chosen = self.scores_NC.argmax(axis=1)
        return np.asarray(np.arange(self.scores_NC.shape[1]) == chosen[:, None])

    @cached_property
    def varied(self) -> list[int]:
        """Classes that some functions have and some have not: what a ranking needs."""
        return np.flatnonzero(self.holds_NC.any(axis=0) & ~self.holds_NC.all(axis=0)).tolist()

    @cached_property
    def is_right_N(self) -> npt.NDArray[np.bool_]:
        """Whether all classes of a function are predicted right."""
        return np.asarray((self.holds_NC == self.predicted_NC).all(axis=1))

    @cached_property
    def is_near_N(self) -> npt.NDArray[np.bool_]:
        """Whether the label is among the TOP highest scores; equal ones go to the lower class."""
        order_NK = np.argsort(-self.scores_NC, axis=1, kind="stable")[:, :TOP]
        return np.asarray(np.take_along_axis(self.holds_NC, order_NK, axis=1).any(axis=1))

    @cached_property
    def rankings(self) -> dict[int, Ranking]:
        """The order of each class that varies, against the rest."""
        holds_NC = self.holds_NC.astype(np.int64)
        return {c: Ranking(self.scores_NC[:, c], holds_NC[:, c]) for c in self.varied}

    def resampled(self, weights_RN: Multiplicities) -> "ResampledClasses":
        """The sums of each resample, from multiplicities."""
        return ResampledClasses(self, weights_RN)

    @property
    def confusion(self) -> list[list[int]]:
        """Functions by label (rows) and prediction."""
        counts: list[list[int]] = (self.holds_NC.T.astype(int) @ self.predicted_NC).tolist()
        return counts

    def ranked(self, scorer: str, number: int) -> float | None:
        """A metric of scikit-learn on the scores of a class against the rest."""
        from sklearn import metrics

        if number not in self.varied:
            return None
        score = getattr(metrics, scorer)
        return float(score(self.holds_NC[:, number], self.scores_NC[:, number]))

    def by_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Counts and metrics of each class."""
        from sklearn.metrics import precision_recall_fscore_support

        answers = self.holds_NC, self.predicted_NC
        precision_C, recall_C, f1_C, num_C = precision_recall_fscore_support(
            *answers, average=None, zero_division=0.0
        )
        return [
            {
                "class": name,
                "num": int(num_C[number]),
                "num_predicted": int(self.predicted_NC[:, number].sum()),
                "tp": int((self.holds_NC & self.predicted_NC)[:, number].sum()),
                "precision": float(precision_C[number]),
                "recall": float(recall_C[number]) if num_C[number] else None,
                "f1": float(f1_C[number]),
                "average_precision": self.ranked("average_precision_score", number),
                "roc_auc": self.ranked("roc_auc_score", number),
            }
            for number, name in enumerate(names)
        ]


@dataclass(frozen=True)
class ResampledClasses:
    """What the measures of `ClassScored` need of R resamples, computed once for all of them."""

    scored: ClassScored
    weights_RN: Multiplicities

    @cached_property
    def total_R(self) -> FloatArray:
        """Functions."""
        return np.asarray(self.weights_RN.sum(axis=1), dtype=np.float64)

    @cached_property
    def counts(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """True positives, predictions and functions by class, each (R, C)."""
        holds_NC, predicted_NC = self.scored.holds_NC, self.scored.predicted_NC
        tp_RC, predicted_RC, num_RC = (
            (self.weights_RN @ marks_NC.astype(np.float32)).astype(np.float64)
            for marks_NC in (holds_NC & predicted_NC, predicted_NC, holds_NC)
        )
        return tp_RC, predicted_RC, num_RC

    @cached_property
    def f1_RC(self) -> FloatArray:
        """F1 by class, NaN where a class is neither present nor predicted."""
        tp_RC, predicted_RC, num_RC = self.counts
        with np.errstate(invalid="ignore"):
            return np.asarray(2 * tp_RC / (predicted_RC + num_RC))

    @cached_property
    def ranked(self) -> dict[int, tuple[FloatArray, FloatArray]]:
        """ROC AUC and average precision of each class against the rest, NaN where it is missing."""
        with np.errstate(invalid="ignore", divide="ignore"):
            rankings = {c: r.resampled(self.weights_RN) for c, r in self.scored.rankings.items()}
            return {c: (r.roc_auc(), r.average_precision()) for c, r in rankings.items()}

    def share(self, is_right_N: npt.NDArray[np.bool_]) -> FloatArray:
        """The share of functions of a kind."""
        return np.asarray(self.weights_RN @ is_right_N.astype(np.float32) / self.total_R)

    def mean_ranked(self, place: int) -> FloatArray:
        """The mean over classes of `ranked`."""
        values = [of_class[place] for of_class in self.ranked.values()]
        if not values:
            return np.full(len(self.total_R), np.nan)
        return mean_of_defined(np.stack(values, axis=1))


def mean_of_defined(values_RC: FloatArray) -> FloatArray:
    """The mean over classes where a value is defined; 0 without one."""
    num_R = (~np.isnan(values_RC)).sum(axis=1)
    return np.asarray(np.nansum(values_RC, axis=1) / np.maximum(num_R, 1))
