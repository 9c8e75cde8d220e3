"""Rank correlations with intervals, and the Pareto front.

N pairs, M methods, S seeds, R resamples.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import stats

from trainer.evaluation.resampling import percentile_interval

FloatArray = npt.NDArray[np.float64]
Correlation = Callable[[FloatArray, FloatArray], float | None]
LEVEL, SEED, NUM_RESAMPLES = 0.95, 0, 2000
_MOST_PERMUTATIONS = 5040  # all of 7 pairs


def spearman(x_N: FloatArray, y_N: FloatArray) -> float | None:
    """Pearson's correlation of the ranks (Spearman 1904); None where one side does not vary."""
    if not _both_vary(x_N, y_N):
        return None
    # Half the time of stats.spearmanr, which also makes a p-value for each of 2,000 resamples.
    return float(np.corrcoef(stats.rankdata([x_N, y_N], axis=1))[0, 1])


def kendall(x_N: FloatArray, y_N: FloatArray) -> float | None:
    """Tau-b (Kendall 1945), which allows for ties; None where one side does not vary."""
    return float(stats.kendalltau(x_N, y_N).statistic) if _both_vary(x_N, y_N) else None


def kendall_p(x_N: FloatArray, y_N: FloatArray) -> float | None:
    """How often a random order gives a tau at least as far from 0.

    Exact; with ties and more than 7 pairs, orders are drawn.
    """
    if not _both_vary(x_N, y_N):
        return None
    if len(set(x_N)) == len(set(y_N)) == len(x_N):
        return float(stats.kendalltau(x_N, y_N, method="exact").pvalue)
    test = stats.permutation_test(
        (y_N,),
        lambda order_N: stats.kendalltau(x_N, order_N).statistic,
        permutation_type="pairings",
        n_resamples=_MOST_PERMUTATIONS,
        rng=SEED,
    )
    return float(test.pvalue)


def grouped_interval(
    x_N: FloatArray, y_N: FloatArray, groups_N: Sequence[object], correlation: Correlation
) -> tuple[float, float] | None:
    """Percentile interval of a correlation, whole groups drawn with replacement.

    Resamples without a correlation are left out: one side does not vary.
    """
    names = sorted({str(group) for group in groups_N})
    members = [[n for n, group in enumerate(groups_N) if str(group) == name] for name in names]
    generator = np.random.default_rng(SEED)
    drawn = []
    for _ in range(NUM_RESAMPLES):
        chosen = generator.integers(len(members), size=len(members))
        rows = [n for group in chosen for n in members[group]]
        drawn.append(correlation(x_N[rows], y_N[rows]))
    return _interval(drawn)


def seed_interval(
    x_MS: FloatArray, y_MS: FloatArray, correlation: Correlation
) -> tuple[float, float] | None:
    """Percentile interval of the correlation of means over seeds, drawn with replacement.

    All methods get the same drawn seeds, as they share the order of the data; x and y get their
    own, as their models share nothing. None with one seed.
    """
    if x_MS.shape[1] < 2:
        return None
    num_seeds, generator = x_MS.shape[1], np.random.default_rng(SEED)

    @cache  # few seeds give few distinct resamples
    def of_resample(*seeds: tuple[int, ...]) -> float | None:
        x_M, y_M = (v_MS[:, s].mean(axis=1) for v_MS, s in zip((x_MS, y_MS), seeds, strict=True))
        return correlation(x_M, y_M)

    drawn = []
    for _ in range(NUM_RESAMPLES):
        seeds_2S = generator.integers(num_seeds, size=(2, num_seeds))
        drawn.append(of_resample(*map(tuple, np.sort(seeds_2S, axis=1).tolist())))
    return _interval(drawn)


def separated_pairs(x_MS: FloatArray, y_MS: FloatArray) -> tuple[int, int, int]:
    """Pairs of methods: all, those whose seeds overlap on neither side, of these in one order."""
    first, second = np.triu_indices(len(x_MS), 1)
    apart, order = [], []
    for v_MS in (x_MS, y_MS):
        low_M, high_M = v_MS.min(axis=1), v_MS.max(axis=1)
        below, above = high_M[first] < low_M[second], high_M[second] < low_M[first]
        apart.append(below | above)
        order.append(below)
    both = apart[0] & apart[1]
    return len(first), int(both.sum()), int((both & (order[0] == order[1])).sum())


def pareto_front(cost_N: FloatArray, loss_N: FloatArray) -> list[int]:
    """Points that no other beats: at most its cost and loss, and lower in one; cheapest first."""
    front = []
    for n in range(len(cost_N)):
        no_worse = (cost_N <= cost_N[n]) & (loss_N <= loss_N[n])
        better = (cost_N < cost_N[n]) | (loss_N < loss_N[n])
        if not (no_worse & better).any():
            front.append(n)
    return sorted(front, key=lambda n: (cost_N[n], loss_N[n]))


def _both_vary(x_N: FloatArray, y_N: FloatArray) -> bool:
    return bool(np.ptp(x_N) > 0 and np.ptp(y_N) > 0)


def _interval(drawn: Sequence[float | None]) -> tuple[float, float] | None:
    values = np.array([value for value in drawn if value is not None], dtype=np.float64)
    return percentile_interval(values, LEVEL) if len(values) else None
