"""Rank correlations with intervals, and the Pareto front.

N pairs, M methods, S seeds, R resamples.
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt

from trainer.evaluation.resampling import percentile_interval

FloatArray = npt.NDArray[np.float64]
Correlation = Callable[[FloatArray, FloatArray], float | None]
LEVEL, SEED, NUM_RESAMPLES = 0.95, 0, 2000
_MOST_EXACT = 7  # 5,040 permutations; above, NUM_RESAMPLES random ones


def ranks(values_N: FloatArray) -> FloatArray:
    """Ranks from 1, equal values share the mean of theirs."""
    _, place_N, count_K = np.unique(values_N, return_inverse=True, return_counts=True)
    last_K = np.cumsum(count_K)
    return np.asarray((last_K - (count_K - 1) / 2)[place_N], dtype=np.float64)


def spearman(x_N: FloatArray, y_N: FloatArray) -> float | None:
    """Pearson's correlation of the ranks (Spearman 1904); None where one side does not vary."""
    x_N, y_N = ranks(x_N), ranks(y_N)
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = np.sqrt((x_N @ x_N) * (y_N @ y_N))
    return float(x_N @ y_N / scale) if scale > 0 else None


def kendall(x_N: FloatArray, y_N: FloatArray) -> float | None:
    """Tau-b: pairs in the same order less pairs in the other, ties left out (Kendall 1945)."""
    upper = np.triu_indices(len(x_N), 1)
    x_P, y_P = (np.sign(v[:, None] - v[None, :])[upper] for v in (x_N, y_N))
    scale = np.sqrt((x_P @ x_P) * (y_P @ y_P))
    return float(x_P @ y_P / scale) if scale > 0 else None


def permutation_p(x_N: FloatArray, y_N: FloatArray, correlation: Correlation) -> float | None:
    """How often a random order of y gives a correlation at least as far from 0.

    Exact up to 7 pairs, by random permutations above.
    """
    found = correlation(x_N, y_N)
    if found is None:
        return None
    num = len(x_N)
    is_exact = num <= _MOST_EXACT
    generator = np.random.default_rng(SEED)
    orders = (
        permutations(range(num))
        if is_exact
        else (generator.permutation(num) for _ in range(NUM_RESAMPLES))
    )
    drawn = np.array([correlation(x_N, y_N[list(order)]) for order in orders], dtype=np.float64)
    num_extreme = int((np.abs(drawn) >= abs(found) - 1e-12).sum())  # rounding is no difference
    # A random sample never shows that none is as extreme: the order found is one of them.
    return num_extreme / len(drawn) if is_exact else (num_extreme + 1) / (len(drawn) + 1)


def grouped_interval(
    x_N: FloatArray, y_N: FloatArray, groups_N: Sequence[object], correlation: Correlation
) -> tuple[float, float] | None:
    """Percentile interval of a correlation, whole groups drawn with replacement.

    Resamples in which a side does not vary have no correlation and are left out.
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
    """Percentile interval of the correlation of two rows of means, seeds drawn with replacement.

    A seed is drawn for all methods at once, as they share its order of the data, and for x and y
    apart, as their models share nothing. One seed says nothing of others: None.
    """
    if x_MS.shape[1] < 2:
        return None
    generator = np.random.default_rng(SEED)
    drawn = []
    for _ in range(NUM_RESAMPLES):
        x_M, y_M = (
            v_MS[:, generator.integers(v_MS.shape[1], size=v_MS.shape[1])].mean(axis=1)
            for v_MS in (x_MS, y_MS)
        )
        drawn.append(correlation(x_M, y_M))
    return _interval(drawn)


def separated_pairs(x_MS: FloatArray, y_MS: FloatArray) -> tuple[int, int, int]:
    """Pairs of methods; those whose seeds do not overlap in x nor in y; of these, same order."""
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
    """Points that no other beats: none costs no more, loses no more and is better in one."""
    front = []
    for n in range(len(cost_N)):
        no_worse = (cost_N <= cost_N[n]) & (loss_N <= loss_N[n])
        better = (cost_N < cost_N[n]) | (loss_N < loss_N[n])
        if not (no_worse & better).any():
            front.append(n)
    return sorted(front, key=lambda n: (cost_N[n], loss_N[n]))


def _interval(drawn: Sequence[float | None]) -> tuple[float, float] | None:
    values = np.array([value for value in drawn if value is not None], dtype=np.float64)
    return percentile_interval(values, LEVEL) if len(values) else None
