"""Every measure of several predictors on the same resamples.

Shapes: N functions or records, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from data.text.terminal import tracked
from trainer.evaluation.measures import measures_of
from trainer.evaluation.predictors import Measured
from trainer.evaluation.resampling import (
    FloatArray,
    IntArray,
    Multiplicities,
    Resampling,
    percentile_interval,
    resamples,
)

# From what every predictor's `resampled` gives to R values, NaN where one is undefined.
Statistic = Callable[[Mapping[str, Any]], FloatArray]
MORE = "more"


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
            if name == predictor and not np.isnan(values_R).any()
        }

    def averaged(self, members: Mapping[str, Sequence[str]]) -> "Bootstrap":
        """The mean over several predictors, such as the seeds of a setting, in each resample."""
        values = {
            (name, measure): np.mean([self.values[one, measure] for one in of], axis=0)
            for name, of in members.items()
            for measure in dict.fromkeys(key for _, key in self.values)
        }
        return replace(self, values=values)

    def more(self, key: str) -> list[float] | None:
        """Both ends of a further value, over the resamples where it is defined.

        None where it is undefined in more than half of them.
        """
        values_R = self.values.get((MORE, key), np.empty(0))
        defined = values_R[~np.isnan(values_R)]
        if not len(defined) or 2 * len(defined) < len(values_R):
            return None
        return list(percentile_interval(defined, self.level))

    def difference(self, measure: str, predictor: str, other: str) -> list[float]:
        """Both ends for the difference of a measure between two predictors.

        It is paired: what makes a resample easy or hard for both cancels, so this interval can
        exclude 0 where the two separate intervals overlap.
        """
        difference_R = self.values[predictor, measure] - self.values[other, measure]
        return list(percentile_interval(difference_R, self.level))


def bootstrap(
    of: Measured,
    predictors: Mapping[str, Any],
    cluster_N: IntArray,
    draws: Resampling,
    labels_N: IntArray | None = None,
    more: Mapping[str, Statistic] = MappingProxyType({}),
) -> Bootstrap:
    """Compute the measures that have intervals on resamples of whole clusters.

    Functions of one commit are alike, so drawing them one by one would make intervals too narrow.

    Args:
        predictors: Name -> `Scored`, `ClassScored` or `TokenSums`.
        cluster_N: From `cluster_ids`.
        labels_N: 0 or 1; with them, resamples of one class are drawn again.
        more: Further values on the same resamples, named MORE and their key.
    """
    resampled = {key: m.resampled for key, m in measures_of(of).items() if m.resampled}

    def values_of(weights_RN: Multiplicities) -> dict[tuple[str, str], FloatArray]:
        sums = {name: predictor.resampled(weights_RN) for name, predictor in predictors.items()}
        of_predictors = {
            (name, key): function(own)
            for name, own in sums.items()
            for key, function in resampled.items()
        }
        return of_predictors | {(MORE, key): statistic(sums) for key, statistic in more.items()}

    return drawn_values(values_of, cluster_N, draws, labels_N)


def drawn_values(
    values_of: Callable[[Multiplicities], Mapping[tuple[str, str], FloatArray]],
    cluster_N: IntArray,
    draws: Resampling,
    labels_N: IntArray | None = None,
) -> Bootstrap:
    """Values by (predictor, measure) of every resample, from the multiplicities of a chunk.

    The other arguments are as in `bootstrap`.
    """
    has_one_class = labels_N is not None and labels_N.min() == labels_N.max()
    if has_one_class or cluster_N.max() == 0:
        return Bootstrap({}, 0, draws.level)
    parts: dict[tuple[str, str], list[FloatArray]] = {}
    num_redrawn = 0
    drawn = resamples(cluster_N, draws, labels_N)
    num = draws.num_resamples
    for weights_RN, num_refused in tracked(drawn, "intervals", num, lambda one: len(one[0])):
        num_redrawn += num_refused
        for key, values_R in values_of(weights_RN).items():
            parts.setdefault(key, []).append(values_R)
    values = {key: np.concatenate(chunks) for key, chunks in parts.items()}
    return Bootstrap(values, num_redrawn, draws.level)
