"""What scores before and after a transformation say, and what scores of pairs follow.

Shapes: N functions, M changed functions, C classes, Q pairs, R resamples, T and U words.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data.text.labels import Classes
from trainer.evaluation.bootstrap import MORE, drawn_values
from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.baselines import CODE_TOKEN
from trainer.evaluation.measures import MEASURES
from trainer.evaluation.predictors import Scored
from trainer.evaluation.resampling import (
    USUAL_DRAWS,
    FloatArray,
    IntArray,
    Multiplicities,
    cluster_ids,
)
from trainer.evaluation.statistics import grouped_interval, spearman

Mask = npt.NDArray[np.bool_]
Statistic = Callable[[Multiplicities], FloatArray]


def answers(scores_NC: FloatArray, classes: Classes, decision: Decision) -> tuple[FloatArray, Mask]:
    """One score of each function, and which classes (N, C) are its answer; of two the alarm (N, 1).

    The score of two classes is that of the second, of many that of all but the first, of several at
    once the highest.
    """
    if classes.is_binary:
        return scores_NC[:, 1], scores_NC[:, 1:] >= decision.threshold
    if classes.sets is None:
        is_chosen_CC = np.eye(scores_NC.shape[1], dtype=np.bool_)
        return np.maximum(1 - scores_NC[:, 0], 0), is_chosen_CC[scores_NC.argmax(axis=1)]
    return scores_NC.max(axis=1), scores_NC >= np.array(decision.thresholds or 0.5)


def score_title(classes: Classes) -> str:
    """What the score of `answers` is."""
    if classes.sets is not None:
        return "highest score of a class"
    return f"P({classes.shown[1]})" if classes.is_binary else f"P(not {classes.names[0]})"


def shift_facts(
    before: Scored, after: Scored, flips_M: Mask, groups_M: Sequence[object]
) -> dict[str, Any]:
    """Shifts of scores, the share of other answers, and the ROC AUC before and after.

    Args:
        before: The changed functions as they were.
        after: The same functions after the transformation.
        flips_M: Whose answer is another one.
        groups_M: Functions of one group are drawn together.

    Returns:
        Numbers by name; none without a function.
    """
    if not len(flips_M):
        return {}
    shift_M, statistics = after.scores_N - before.scores_N, {"flips": _share(flips_M)}
    was, is_now = (MEASURES["roc_auc"].function(one) for one in (before, after))
    if before.has_both:
        statistics["auc"] = lambda weights_RM: np.subtract(
            *(one.ranking.resampled(weights_RM).roc_auc() for one in (after, before))
        )
    ends = _intervals(statistics, groups_M, before.labels_N if before.has_both else None)
    return {
        "mean_shift": shift_M.mean(),
        "mean_absolute_shift": np.abs(shift_M).mean(),
        "largest_shift": np.abs(shift_M).max(),
        "flip_rate": flips_M.mean(),
        "flip_interval": ends["flips"],
        "auc_before": was,
        "auc_after": is_now,
        "auc_difference": None if was is None or is_now is None else is_now - was,
        "auc_interval": ends.get("auc"),
    }


def pair_facts(
    scores_Q2: FloatArray, distance_Q: FloatArray, groups_Q: Sequence[object]
) -> dict[str, Any]:
    """Whether scores of pairs follow how much was edited, or what the edit does.

    Args:
        scores_Q2: Of the vulnerable function of each pair and of its fix.
        distance_Q: From `edit_distance`.
        groups_Q: Pairs of one group are drawn together.
    """
    above_Q = scores_Q2[:, 0] - scores_Q2[:, 1]
    apart_Q, win_Q = np.abs(above_Q), (np.sign(above_Q) + 1) / 2
    return {
        "num": len(win_Q),
        "mean_difference": apart_Q.mean(),
        "mean_distance": distance_Q.mean(),
        "spearman": spearman(apart_Q, distance_Q),
        "spearman_interval": grouped_interval(apart_Q, distance_Q, groups_Q, spearman),
        "auc": win_Q.mean(),
        "auc_interval": _intervals({"auc": _share(win_Q)}, groups_Q)["auc"],
    }


def edit_distance(one: str, other: str) -> float:
    """Words and signs to insert, delete or replace, over those of the longer text.

    Whitespace does not count (Levenshtein 1966, by Wagner and Fischer 1974).
    """
    a_T, b_U = (re.findall(CODE_TOKEN, text) for text in (one, other))
    longest = max(len(a_T), len(b_U), 1)
    while a_T and b_U and a_T[-1] == b_U[-1]:
        del a_T[-1], b_U[-1]
    numbers = {word: number for number, word in enumerate(dict.fromkeys(a_T + b_U))}
    code_U, place_U1 = np.array([numbers[word] for word in b_U]), np.arange(len(b_U) + 1)
    best_U1 = place_U1
    for row, word in enumerate(a_T, 1):
        replaced_U = best_U1[:-1] + (code_U != numbers[word])
        best_U1 = np.r_[row, np.minimum(best_U1[1:] + 1, replaced_U)]
        # An insertion is one more than what is best on its left.
        best_U1 = np.minimum.accumulate(best_U1 - place_U1) + place_U1
    return int(best_U1[-1]) / longest


def _share(values_M: npt.NDArray[Any]) -> Statistic:
    return lambda weights_RM: np.asarray(weights_RM @ values_M / weights_RM.sum(axis=1))


def _intervals(
    statistics: Mapping[str, Statistic], groups: Sequence[object], labels: IntArray | None = None
) -> dict[str, list[float] | None]:
    """The intervals of values on the same resamples of whole groups; None with one group."""

    def values_of(weights: Multiplicities) -> dict[tuple[str, str], FloatArray]:
        return {(MORE, key): statistic(weights) for key, statistic in statistics.items()}

    drawn = drawn_values(values_of, cluster_ids(groups), USUAL_DRAWS, labels)
    return {key: drawn.more(key) for key in statistics}
