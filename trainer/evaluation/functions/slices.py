"""Parts of a scored split: by weakness, language, length and project, and its pairs.

Shapes: N functions, P of them positive, R resamples, Q pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.bootstrap import Bootstrap, Statistic
from trainer.evaluation.functions.predictions import Prediction
from trainer.evaluation.predictors import ResampledScores, Scored
from trainer.evaluation.report import MODEL
from trainer.evaluation.resampling import FloatArray, IntArray, Ranking, taken

_MOST_SLICES = 20  # of a kind, the largest
_LENGTHS = (128, 256, 512, 1024, 2048)  # tokens
_BINS = [*(f"up to {most:,} tokens" for most in _LENGTHS), "more tokens"]
OUTCOMES = ("both_right", "both_vulnerable", "both_safe", "reversed")


@dataclass(frozen=True)
class Slice:
    """Functions that have something in common.

    Attributes:
        kind: "cwe", "language", "length" or "project".
        against_all: Its positives are ranked against the negatives of the whole split.
    """

    kind: str
    name: str
    places_N: IntArray
    against_all: bool = False

    @property
    def key(self) -> str:
        """Names its ROC AUC among the values of a bootstrap."""
        return f"{self.kind}: {self.name}"

    def roc_auc(self, scored: Scored) -> Statistic:
        """Its ROC AUC in resamples, NaN where it has one class only."""
        labels_N = scored.labels_N[self.places_N]
        if self.against_all:
            is_member_N = np.zeros(len(scored.labels_N), np.bool_)
            is_member_N[self.places_N] = True
            of_P = np.flatnonzero(is_member_N[scored.ranking.positive_P])
            return lambda sums: sums[MODEL].ranking.roc_auc(of_P)
        ranking = Ranking(scored.scores_N[self.places_N], labels_N)

        def statistic(sums: Mapping[str, ResampledScores]) -> FloatArray:
            with np.errstate(invalid="ignore", divide="ignore"):
                return ranking.resampled(taken(sums[MODEL].weights_RN, self.places_N)).roc_auc()

        return statistic

    def row(
        self, scored: Scored, roc_auc: Statistic, whole: Mapping[str, Any], drawn: Bootstrap
    ) -> dict[str, Any]:
        """Counts, answers at the threshold, and the ROC AUC with its interval.

        `roc_auc` is that of this slice, `whole` a resample that holds every function once.
        """
        labels, predicted = (a[self.places_N] for a in (scored.labels_N, scored.predicted_N))
        num, num_positive, num_predicted = len(labels), int(labels.sum()), int(predicted.sum())
        tp = int((labels & predicted).sum())
        # Without negatives there are no false alarms: precision would always be 1.
        has_both = 0 < num_positive < num
        is_ranked = scored.has_both and bool(num_positive) and (has_both or self.against_all)
        return {
            self.kind: self.name,
            "num": num,
            "num_positive": num_positive,
            "num_predicted": num_predicted,
            "tp": tp,
            "roc_auc": float(roc_auc(whole)[0]) if is_ranked else None,
            "interval": drawn.more(self.key) if is_ranked else None,
            "recall": tp / num_positive if num_positive else None,
            "precision": (tp / num_predicted if num_predicted else 0.0) if has_both else None,
            "f1": 2 * tp / (num_positive + num_predicted) if has_both else None,
        }


def slices_of(predictions: Sequence[Prediction]) -> dict[str, list[Slice]]:
    """The slices of a split by kind, the largest first; a kind with one slice is left out.

    A function with several CWEs counts for each. The vulnerable functions of a CWE are ranked
    against all that are not: datasets rarely say which weakness a safe function lacks.
    """
    kinds: dict[str, Callable[[Prediction], list[str]]] = {
        "cwe": lambda p: p.cwe.split(", "),
        "language": lambda p: [p.language],
        "length": lambda p: [_length_bin(p.num_tokens)],
        "project": lambda p: [p.project],
    }
    found = {}
    for kind, names in kinds.items():
        places: dict[str, list[int]] = {}
        for place, prediction in enumerate(predictions):
            for name in names(prediction):
                places.setdefault(name, []).append(place)
        if kind == "cwe" or len(places) > 1:
            slices = [
                Slice(kind, name, np.array(members), against_all=kind == "cwe")
                for name, members in places.items()
            ]
            largest = sorted(slices, key=lambda s: (-len(s.places_N), s.name))[:_MOST_SLICES]
            is_length = kind == "length"
            found[kind] = (
                sorted(largest, key=lambda s: _BINS.index(s.name)) if is_length else largest
            )
    return found


def _length_bin(num_tokens: int) -> str:
    for most in _LENGTHS:
        if num_tokens <= most:
            return f"up to {most:,} tokens"
    return _BINS[-1]


@dataclass(frozen=True)
class Pairs:
    """Vulnerable functions beside their own fixes: places in the split."""

    vulnerable_Q: IntArray
    fixed_Q: IntArray

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> "Pairs":
        """The pairs of a split: one function of each class with one `pair`."""
        members: dict[str, list[int]] = {}
        for place, prediction in enumerate(predictions):
            if prediction.pair:
                members.setdefault(prediction.pair, []).append(place)
        pairs = [
            sorted(places, key=lambda place: -predictions[place].label)
            for places in members.values()
            if len(places) == 2 and sum(predictions[place].label for place in places) == 1
        ]
        places_Q2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return cls(places_Q2[:, 0], places_Q2[:, 1])

    def shares(self, scored: Scored) -> dict[str, FloatArray]:
        """For each pair 1 or 0 by outcome (Ding et al. 2024), and its part of the AUC.

        The AUC within pairs is the share of pairs whose vulnerable function has the higher score,
        ties half.
        """
        flags = scored.predicted_N.astype(bool)
        first, second = flags[self.vulnerable_Q], flags[self.fixed_Q]
        above = scored.scores_N[self.vulnerable_Q] - scored.scores_N[self.fixed_Q]
        outcomes = (first & ~second, first & second, ~first & ~second, ~first & second)
        by_name = dict(zip(OUTCOMES, outcomes, strict=True)) | {"roc_auc": (np.sign(above) + 1) / 2}
        return {name: np.asarray(share, dtype=np.float64) for name, share in by_name.items()}

    def statistics(self, scored: Scored) -> dict[str, Statistic]:
        """Every share in resamples; a pair counts as often as its vulnerable function."""

        def statistic(share_Q: FloatArray) -> Statistic:
            def value(sums: Mapping[str, ResampledScores]) -> FloatArray:
                weights_RQ = taken(sums[MODEL].weights_RN, self.vulnerable_Q)
                with np.errstate(invalid="ignore"):
                    return np.asarray(
                        weights_RQ @ share_Q / weights_RQ.sum(axis=1, dtype=np.float64)
                    )

            return value

        return {f"pairs: {k}": statistic(share_Q) for k, share_Q in self.shares(scored).items()}

    def facts(self, scored: Scored, drawn: Bootstrap) -> dict[str, Any] | None:
        """The shares with their intervals; None without a pair."""
        num = len(self.vulnerable_Q)
        if not num:
            return None
        shares = {name: float(share_Q.mean()) for name, share_Q in self.shares(scored).items()}
        intervals = {name: drawn.more(f"pairs: {name}") for name in shares}
        return {"num": num, **shares, "intervals": intervals}
