"""MEASURES[name] is one number of a predictor: its heading, direction, function and interval.

Evaluation, validation, the choice of the best step, reports and sweeps all use it.

Shapes: N functions, R resamples, C classes, B tenths of [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.predictors import (
    NUM_BINS,
    TOP,
    ClassScored,
    Measured,
    ResampledClasses,
    ResampledScores,
    Scored,
    mean_of_defined,
)
from trainer.evaluation.resampling import FloatArray, f1_from_counts, mcc_from_counts

TASK_MEASURES: dict[str, Measured] = {
    "classification": "functions",
    "instruction": "tokens",
    "causal_lm": "tokens",
}

VDS_ALARMS = 0.005  # false positive rate of PrimeVul's vulnerability detection score (2024)


@dataclass(frozen=True)
class Measure:
    """One number of a predictor.

    Attributes:
        of: What it is computed from: "functions" of `Scored`; "classes" of a `ClassScored` where
            one holds, "labels" where several do; "tokens" of `TokenSums`.
        title: Heading in tables and logs; with "" the number is in the JSON only.
        function: Computes it; None where it is undefined.
        resampled: Computes it for R resamples, from what the predictor's `resampled` gives, for
            an interval.
        decides: It chooses the best step; one measure of each kind does.
        swept: A sweep compares it; pictures show the first one.
        is_detail: It is in the second table of a report, and not in logs.
        digits: After the point, in tables.
    """

    of: tuple[Measured, ...]
    title: str
    higher_is_better: bool
    function: Callable[[Any], float | None]
    resampled: Callable[[Any], FloatArray] | None = None
    decides: bool = False
    swept: bool = False
    is_detail: bool = False
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
    return {name: measure for name, measure in MEASURES.items() if of in measure.of}


def measured(of: Measured, predictor: Any) -> dict[str, float | None]:
    """Every measure of functions, or of tokens, for a `Scored` or `TokenSums`."""
    return {name: measure.function(predictor) for name, measure in measures_of(of).items()}


def shown_measures(of: Measured, *, details: bool = False) -> dict[str, Measure]:
    """The measures that tables and logs show, or those of the second table."""
    return {
        name: measure
        for name, measure in measures_of(of).items()
        if measure.title and measure.is_detail == details
    }


def swept_measures(of: Measured) -> dict[str, Measure]:
    """The measures by which sweeps compare, first the one that chooses the best step."""
    swept = {name: measure for name, measure in measures_of(of).items() if measure.swept}
    return dict(sorted(swept.items(), key=lambda item: not item[1].decides))


def _ranking(scorer: str) -> Callable[[Scored], float | None]:
    """A metric of scikit-learn on scores, undefined with one class."""

    def measure(s: Scored) -> float | None:
        from sklearn import metrics

        return float(getattr(metrics, scorer)(s.labels_N, s.scores_N)) if s.has_both else None

    return measure


def _precision(s: Scored) -> float:
    tp, predicted, _ = s.counts
    return float(tp / predicted) if predicted else 0.0


def _recall(s: Scored) -> float:
    tp, _, positives = s.counts
    return float(tp / positives) if positives else 0.0


def _mcc(s: Scored) -> float:
    tp, predicted, positives = s.counts
    return float(mcc_from_counts(tp, predicted, positives, np.float64(len(s.labels_N))))


def _f1_of_classes(average: str) -> Callable[[ClassScored], float]:
    """F1 of all answers together (micro), or the mean of classes present or predicted.

    The mean is plain (macro) or by the functions of each class (weighted).
    """

    def measure(s: ClassScored) -> float:
        from sklearn.metrics import f1_score

        undefined = np.nan if average == "macro" else 0.0
        options = {"average": average, "zero_division": undefined}
        return float(np.nan_to_num(f1_score(s.holds_NC, s.predicted_NC, **options)))

    return measure


def _mean_of_classes(scorer: str) -> Callable[[ClassScored], float | None]:
    """The mean over classes of a metric of scikit-learn, each against the rest."""

    def measure(s: ClassScored) -> float | None:
        values = [s.ranked(scorer, number) or 0.0 for number in s.varied]
        return float(np.mean(values)) if values else None

    return measure


def _brier(s: Scored) -> float:
    return float(np.mean((s.labels_N - s.scores_N) ** 2))


def _calibration_error(s: Scored) -> float:
    """Mean distance of score and share of positives over the tenths of [0, 1], by their functions.

    Naeini et al. 2015, of the score of class 1, as the reliability curve draws it.
    """
    sums_B = np.bincount(s.bin_N, s.scores_N - s.labels_N, minlength=NUM_BINS)
    return float(np.abs(sums_B).sum() / len(s.labels_N))


def _recall_at(most_alarms: float) -> Callable[[Scored], float | None]:
    """The highest recall at a false positive rate."""

    def measure(s: Scored) -> float | None:
        if not s.has_both:
            return None
        alarms_K, recall_K = s.roc
        return float(recall_K[alarms_K <= most_alarms + 1e-12].max())

    return measure


def _missed(s: Scored) -> float | None:
    found = _recall_at(VDS_ALARMS)(s)
    return None if found is None else 1 - found


def _resampled_f1(s: ResampledScores) -> FloatArray:
    return f1_from_counts(*s.counts)


def _resampled_mcc(s: ResampledScores) -> FloatArray:
    return mcc_from_counts(*s.counts, s.total_R)


def _near_accuracy(s: ClassScored) -> float | None:
    return float(s.is_near_N.mean()) if s.scores_NC.shape[1] > TOP else None


def _balanced_accuracy(s: ClassScored) -> float:
    from sklearn.metrics import recall_score

    present = np.flatnonzero(s.holds_NC.any(axis=0)).tolist()
    return float(recall_score(s.holds_NC, s.predicted_NC, labels=present, average="macro"))


def _resampled_recalls(s: ResampledClasses) -> FloatArray:
    tp_RC, _, num_RC = s.counts
    with np.errstate(invalid="ignore"):
        return mean_of_defined(tp_RC / num_RC)


def _resampled_micro_f1(s: ResampledClasses) -> FloatArray:
    tp_R, predicted_R, num_R = (counts_RC.sum(axis=1) for counts_RC in s.counts)
    return f1_from_counts(tp_R, predicted_R, num_R)


def _resampled_weighted_f1(s: ResampledClasses) -> FloatArray:
    num_RC = s.counts[2]
    return np.asarray((np.nan_to_num(s.f1_RC) * num_RC).sum(axis=1) / num_RC.sum(axis=1))


MEASURES: dict[str, Measure] = {
    "roc_auc": Measure(
        ("functions",),
        "ROC AUC",
        True,
        _ranking("roc_auc_score"),
        lambda s: s.ranking.roc_auc(),
        decides=True,
        swept=True,
    ),
    "pr_auc": Measure(
        ("functions",),
        "PR AUC",
        True,
        _ranking("average_precision_score"),
        lambda s: s.ranking.average_precision(),
    ),
    "f1": Measure(
        ("functions",),
        "F1",
        True,
        lambda s: float(f1_from_counts(*s.counts)),
        _resampled_f1,
    ),
    "mcc": Measure(("functions",), "MCC", True, _mcc, _resampled_mcc),
    "precision": Measure(("functions",), "", True, _precision),
    "recall": Measure(("functions",), "", True, _recall),
    "accuracy": Measure(
        ("functions",), "", True, lambda s: float(np.mean(s.labels_N == s.predicted_N))
    ),
    "recall_at_1": Measure(
        ("functions",),
        "recall at FPR 1%",
        True,
        _recall_at(0.01),
        lambda s: s.ranking.recall_at(0.01),
        is_detail=True,
    ),
    "recall_at_5": Measure(
        ("functions",),
        "recall at FPR 5%",
        True,
        _recall_at(0.05),
        lambda s: s.ranking.recall_at(0.05),
        is_detail=True,
    ),
    "vd_s": Measure(
        ("functions",),
        "VD-S",
        False,
        _missed,
        lambda s: 1 - s.ranking.recall_at(VDS_ALARMS),
        is_detail=True,
    ),
    "brier": Measure(
        ("functions",), "Brier", False, _brier, lambda s: s.sums_KR[3] / s.total_R, is_detail=True
    ),
    "ece": Measure(
        ("functions",),
        "ECE",
        False,
        _calibration_error,
        lambda s: np.abs(s.sums_KR[4:]).sum(axis=0) / s.total_R,
        is_detail=True,
    ),
    "class_accuracy": Measure(
        (
            "classes",
            "labels",
        ),
        "accuracy",
        True,
        lambda s: float(s.is_right_N.mean()),
        lambda s: s.share(s.scored.is_right_N),
    ),
    "balanced_accuracy": Measure(
        ("classes",), "balanced accuracy", True, _balanced_accuracy, _resampled_recalls
    ),
    "macro_f1": Measure(
        (
            "classes",
            "labels",
        ),
        "macro F1",
        True,
        _f1_of_classes("macro"),
        lambda s: mean_of_defined(s.f1_RC),
        swept=True,
    ),
    "weighted_f1": Measure(
        ("classes",), "weighted F1", True, _f1_of_classes("weighted"), _resampled_weighted_f1
    ),
    "micro_f1": Measure(
        ("labels",), "micro F1", True, _f1_of_classes("micro"), _resampled_micro_f1
    ),
    "mean_ap": Measure(
        (
            "classes",
            "labels",
        ),
        "mean AP",
        True,
        _mean_of_classes("average_precision_score"),
        lambda s: s.mean_ranked(1),
        decides=True,
        swept=True,
    ),
    "macro_auc": Measure(
        (
            "classes",
            "labels",
        ),
        "one-vs-rest AUC",
        True,
        _mean_of_classes("roc_auc_score"),
        lambda s: s.mean_ranked(0),
    ),
    "top_3": Measure(
        ("classes",),
        f"label in top {TOP}",
        True,
        _near_accuracy,
        lambda s: s.share(s.scored.is_near_N),
    ),
    "loss": Measure(
        ("tokens",),
        "loss (nats a token)",
        False,
        lambda sums: sums.loss,
        lambda sums: sums.nll_N / np.maximum(sums.count_N, 1),
        decides=True,
        digits=4,
    ),
    "perplexity": Measure(("tokens",), "perplexity", False, lambda sums: sums.perplexity, digits=2),
    "token_accuracy": Measure(
        ("tokens",), "token accuracy", True, lambda sums: sums.accuracy, swept=True, digits=4
    ),
}
