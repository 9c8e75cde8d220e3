"""MEASURES[name] is one number of a predictor: its heading, direction, function and interval.

Evaluation, validation, the choice of the best step, reports and sweeps all use it.

Shapes: N functions, R resamples, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.evaluation.resampling import (
    FloatArray,
    IntArray,
    f1_from_counts,
    mcc_from_counts,
    weighted_average_precision,
    weighted_roc_auc,
)

Measured = Literal["functions", "classes", "tokens"]
TASK_MEASURES: dict[str, Measured] = {
    "classification": "functions",
    "instruction": "tokens",
    "causal_lm": "tokens",
}


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


@dataclass(frozen=True)
class ClassScored:
    """Scores of functions for each class, and which classes hold.

    Where one class holds, the highest score is predicted, else every score above 0.5.
    """

    scores_NC: FloatArray
    holds_NC: npt.NDArray[np.bool_]
    is_one: bool

    @cached_property
    def predicted_NC(self) -> npt.NDArray[np.bool_]:
        """Which classes are predicted."""
        if not self.is_one:
            return self.scores_NC > 0.5
        chosen = self.scores_NC.argmax(axis=1)
        return np.asarray(np.arange(self.scores_NC.shape[1]) == chosen[:, None])

    @cached_property
    def varied(self) -> list[int]:
        """Classes that some functions have and some have not: what a ranking needs."""
        return np.flatnonzero(self.holds_NC.any(axis=0) & ~self.holds_NC.all(axis=0)).tolist()

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
class Measure:
    """One number of a predictor.

    Attributes:
        of: "functions": computed from `Scored`; "classes": from `ClassScored`; "tokens": from
            `TokenSums`.
        title: Heading in tables and logs; with "" the number is in the JSON only.
        function: Computes it; None where it is undefined.
        resampled: Computes it for R resamples, from multiplicities (R, N), to give an interval.
        decides: It chooses the best step; one measure of each kind does.
        swept: A sweep compares it; pictures show the first one.
        digits: After the point, in tables.
    """

    of: Measured
    title: str
    higher_is_better: bool
    function: Callable[[Any], float | None]
    resampled: Callable[[Any, FloatArray], FloatArray] | None = None
    decides: bool = False
    swept: bool = False
    digits: int = 3

    @property
    def heading(self) -> str:
        """The title at the head of a column."""
        return self.title[:1].upper() + self.title[1:]

    def text(self, value: float | None, interval: Sequence[float] | None = None) -> str:
        """A value for people, e.g. 0.712 [0.640, 0.781]."""
        return with_interval(value, interval, f".{self.digits}f")

    def verdict(self, difference: Sequence[float]) -> str:
        """In words, the interval of a model minus another."""
        low, high = difference
        if low <= 0 <= high:
            return "not distinguishable from"
        return "better than" if (low > 0) == self.higher_is_better else "worse than"


def with_interval(value: float | None, interval: Sequence[float] | None, digits: str) -> str:
    """A number and its interval in a format, e.g. +0.60 [+0.20, +0.81] for "+.2f"."""
    if value is None:
        return "undefined"
    ends = [] if interval is None else [f"[{interval[0]:{digits}}, {interval[1]:{digits}}]"]
    return " ".join([f"{value:{digits}}", *ends])


def measures_of(of: Measured) -> dict[str, Measure]:
    """The measures of functions, or of tokens, by name."""
    return {name: measure for name, measure in MEASURES.items() if measure.of == of}


def measured(of: Measured, predictor: Any) -> dict[str, float | None]:
    """Every measure of functions, or of tokens, for a `Scored` or `TokenSums`."""
    return {name: measure.function(predictor) for name, measure in measures_of(of).items()}


def shown_measures(of: Measured) -> dict[str, Measure]:
    """The measures that tables and logs show."""
    return {name: measure for name, measure in measures_of(of).items() if measure.title}


def swept_measures(task: str) -> dict[str, Measure]:
    """The measures by which sweeps of a task compare, the main one first."""
    of = TASK_MEASURES[task]
    return {name: measure for name, measure in measures_of(of).items() if measure.swept}


def _ranking(scorer: str) -> Callable[[Scored], float | None]:
    """A metric of scikit-learn on scores, undefined with one class."""

    def measure(s: Scored) -> float | None:
        from sklearn import metrics

        return float(getattr(metrics, scorer)(s.labels_N, s.scores_N)) if s.has_both else None

    return measure


def _answers(scorer: str, **options: float) -> Callable[[Scored], float]:
    """A metric of scikit-learn on predicted classes."""

    def measure(s: Scored) -> float:
        from sklearn import metrics

        return float(getattr(metrics, scorer)(s.labels_N, s.predicted_N, **options))

    return measure


def _f1_of_classes(average: str) -> Callable[[ClassScored], float]:
    """F1 of all answers together (micro), or the mean of classes present or predicted (macro)."""

    def measure(s: ClassScored) -> float:
        from sklearn.metrics import f1_score

        undefined = 0.0 if average == "micro" else np.nan
        options = {"average": average, "zero_division": undefined}
        return float(np.nan_to_num(f1_score(s.holds_NC, s.predicted_NC, **options)))

    return measure


def _mean_of_classes(scorer: str) -> Callable[[ClassScored], float | None]:
    """The mean over classes of a metric of scikit-learn, each against the rest."""

    def measure(s: ClassScored) -> float | None:
        values = [s.ranked(scorer, number) or 0.0 for number in s.varied]
        return float(np.mean(values)) if values else None

    return measure


def _mcc(s: Scored) -> float:
    # With one class or one answer MCC is 0/0: scikit-learn gives 0 and sometimes warns.
    varies = s.has_both and 0 < s.predicted_N.sum() < len(s.predicted_N)
    return _answers("matthews_corrcoef")(s) if varies else 0.0


def _brier(s: Scored) -> float:
    return float(np.mean((s.labels_N - s.scores_N) ** 2))


def _resampled_f1(s: Scored, weights_RN: FloatArray) -> FloatArray:
    return f1_from_counts(*_counts(s, weights_RN))


def _resampled_mcc(s: Scored, weights_RN: FloatArray) -> FloatArray:
    return mcc_from_counts(*_counts(s, weights_RN), weights_RN.sum(axis=1))


def _counts(s: Scored, weights_RN: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """True positives, predicted positives and positives of each resample."""
    marks_N3 = np.stack([s.predicted_N * s.labels_N, s.predicted_N, s.labels_N], axis=1)
    tp_R, predicted_R, positives_R = (weights_RN @ marks_N3.astype(np.float64)).T
    return tp_R, predicted_R, positives_R


MEASURES: dict[str, Measure] = {
    "roc_auc": Measure(
        "functions",
        "ROC AUC",
        True,
        _ranking("roc_auc_score"),
        lambda s, weights_RN: weighted_roc_auc(s.scores_N, s.labels_N, weights_RN),
        decides=True,
        swept=True,
    ),
    "pr_auc": Measure(
        "functions",
        "PR AUC",
        True,
        _ranking("average_precision_score"),
        lambda s, weights_RN: weighted_average_precision(s.scores_N, s.labels_N, weights_RN),
    ),
    "f1": Measure("functions", "F1", True, _answers("f1_score", zero_division=0.0), _resampled_f1),
    "mcc": Measure("functions", "MCC", True, _mcc, _resampled_mcc),
    "precision": Measure("functions", "", True, _answers("precision_score", zero_division=0.0)),
    "recall": Measure("functions", "", True, _answers("recall_score", zero_division=0.0)),
    "accuracy": Measure("functions", "", True, _answers("accuracy_score")),
    "brier": Measure("functions", "", False, _brier),
    "class_accuracy": Measure(
        "classes",
        "accuracy",
        True,
        lambda s: float((s.holds_NC == s.predicted_NC).all(axis=1).mean()),
    ),
    "macro_f1": Measure("classes", "macro F1", True, _f1_of_classes("macro")),
    "micro_f1": Measure("classes", "micro F1", True, _f1_of_classes("micro")),
    "mean_ap": Measure(
        "classes", "mean AP", True, _mean_of_classes("average_precision_score"), decides=True
    ),
    "macro_auc": Measure("classes", "one-vs-rest AUC", True, _mean_of_classes("roc_auc_score")),
    "loss": Measure(
        "tokens",
        "loss (nats a token)",
        False,
        lambda sums: sums.loss,
        lambda sums, weights_RN: weights_RN @ sums.nll_N / np.maximum(weights_RN @ sums.count_N, 1),
        decides=True,
        digits=4,
    ),
    "perplexity": Measure("tokens", "perplexity", False, lambda sums: sums.perplexity, digits=2),
    "token_accuracy": Measure(
        "tokens", "token accuracy", True, lambda sums: sums.accuracy, swept=True, digits=4
    ),
}
