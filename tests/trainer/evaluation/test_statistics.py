"""Rank correlations by definition and by hand, intervals, and the Pareto front."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from trainer.evaluation.statistics import (
    grouped_interval,
    kendall,
    kendall_p,
    pareto_front,
    seed_interval,
    separated_pairs,
    spearman,
)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("has_ties", [False, True])
def test_correlations_are_those_of_their_definitions(seed, has_ties):
    x, y = np.random.default_rng(seed).normal(size=(2, 12))
    if has_ties:
        x, y = np.round(x), np.round(y)
        assert len(set(x)) < len(x)
    ranks = [[np.sum(v < a) + np.sum(v == a) / 2 for a in v] for v in (x, y)]
    assert spearman(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
    signs = [np.sign(np.subtract.outer(v, v)).ravel() for v in (x, y)]
    assert kendall(x, y) == pytest.approx(
        signs[0] @ signs[1] / np.sqrt((signs[0] @ signs[0]) * (signs[1] @ signs[1])), abs=1e-12
    )


def test_tau_of_one_swapped_pair_of_four_is_4_of_6_by_hand():
    assert kendall(numbers(1, 2, 3, 4), numbers(1, 3, 2, 4)) == pytest.approx(4 / 6)


def test_a_side_that_does_not_vary_has_no_correlation():
    flat, rising = numbers(2, 2, 2), numbers(1, 2, 3)
    assert spearman(flat, rising) is None
    assert kendall(rising, flat) is None
    assert kendall_p(flat, rising) is None
    assert grouped_interval(flat, rising, "abc", spearman) is None


@pytest.mark.parametrize("y", [(2, 1, 3, 4, 6, 5), (2, 1, 3, 3, 5, 4)])
def test_the_p_value_is_the_share_of_all_orders_that_are_as_extreme(y):
    x, y = np.arange(6.0), numbers(*y)
    taus = np.array([stats.kendalltau(x, order).statistic for order in permutations(y)])
    found = abs(stats.kendalltau(x, y).statistic)
    share = np.mean(np.abs(taus) >= found - 1e-12)
    assert 0.001 < share < 0.1
    assert kendall_p(x, y) == pytest.approx(share, abs=1e-12)


def test_the_p_value_of_many_pairs_is_never_0():
    assert kendall_p(np.arange(12.0), np.arange(12.0)) == pytest.approx(2 / math.factorial(12))
    tied = np.r_[0.0, np.arange(11.0)]
    # None of 5,040 drawn orders is as extreme; the found one counts, on both sides (Phipson 2010).
    assert kendall_p(tied, tied) == pytest.approx(2 / 5041)


def test_all_5040_orders_of_seven_tied_pairs_are_counted():
    x, y = np.arange(7.0), numbers(2, 1, 3, 3, 5, 4, 6)
    first, second = np.triu_indices(7, 1)
    orders = np.array(list(permutations(y)))
    # As x ascends, tau is the number of pairs of y that ascend less those that descend, scaled.
    balance = np.sign(orders[:, second] - orders[:, first]).sum(axis=1)
    share = np.mean(np.abs(balance) >= np.sign(y[second] - y[first]).sum())
    assert kendall_p(x, y) == pytest.approx(share, abs=1e-12)


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    return float(np.corrcoef(x_N, y_N)[0, 1]) if np.ptp(x_N) else None


def test_intervals_are_the_percentiles_of_plain_loops_over_2000_draws():
    rng = np.random.default_rng(1)
    x, y, groups = rng.normal(size=9), rng.normal(size=9), list("bacbbadca")
    members = {name: [n for n, group in enumerate(groups) if group == name] for name in "abcd"}
    draws, values = np.random.default_rng(0), []
    for _ in range(2000):
        rows = [n for g in draws.integers(4, size=4) for n in members["abcd"[g]]]
        values += [pearson(x[rows], y[rows])] * (len(set(rows)) > 1)
    assert len(values) < 2000  # the group of one pair can be all that is drawn
    expected = np.quantile(values, [0.025, 0.975])
    assert grouped_interval(x, y, groups, pearson) == pytest.approx(expected, abs=1e-12)
    x_MS, y_MS = rng.normal(size=(2, 5, 3))
    draws, values = np.random.default_rng(0), []
    for _ in range(2000):
        of_x, of_y = draws.integers(3, size=(2, 3))
        values.append(pearson(x_MS[:, of_x].mean(axis=1), y_MS[:, of_y].mean(axis=1)))
    expected = np.quantile(values, [0.025, 0.975])
    assert seed_interval(x_MS, y_MS, pearson) == pytest.approx(expected, abs=1e-12)


def test_the_interval_over_groups_draws_the_cells_of_a_group_together():
    x = np.arange(12.0)
    noise = np.random.default_rng(0).normal(size=12)
    groups = [n // 2 for n in range(12)]
    low, high = grouped_interval(x, x + 6 * noise, groups, spearman) or (0, 0)
    found = spearman(x, x + 6 * noise)
    assert found is not None
    assert -1 <= low < found < high <= 1
    # One group is the same in every resample.
    assert grouped_interval(x, x + 6 * noise, ["all"] * 12, spearman) == (found, found)


def test_the_interval_over_seeds_is_the_value_itself_where_seeds_agree_and_wider_where_not():
    x_MS = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert seed_interval(x_MS, x_MS, kendall) == (1.0, 1.0)
    # The second seed turns the order of the first two methods: tau is then 1/3.
    turned_MS = np.array([[1.0, 2.9], [2.0, 1.0], [3.0, 3.0]])
    assert seed_interval(turned_MS, x_MS, kendall) == pytest.approx((1 / 3, 1.0))


def test_one_seed_has_no_interval_over_seeds():
    x_M1 = np.array([[1.0], [2.0], [3.0]])
    assert seed_interval(x_M1, x_M1, kendall) is None


def test_pairs_of_methods_are_apart_where_their_seeds_do_not_overlap_on_either_size():
    x_MS = np.array([[1.0, 2.0], [1.5, 3.0], [4.0, 5.0], [6.0, 7.0]])  # the first two overlap
    y_MS = np.array([[1.0, 1.1], [2.0, 2.1], [4.0, 4.1], [3.0, 3.1]])  # the last two turn round
    assert separated_pairs(x_MS, y_MS) == (6, 5, 4)


def test_the_pareto_front_holds_what_nothing_beats_cheapest_first():
    cost = numbers(5, 1, 2, 3, 2)
    loss = numbers(1, 9, 4, 6, 5)
    assert pareto_front(cost, loss) == [1, 2, 0]  # (3, 6) and (2, 5) are beaten by (2, 4)
    # Equal points do not beat each other; a point beats another that it equals on one side.
    assert pareto_front(numbers(1, 1), numbers(2, 2)) == [0, 1]
    assert pareto_front(numbers(2, 1), numbers(3, 3)) == [1]
    assert pareto_front(numbers(3, 3), numbers(2, 1)) == [1]


def test_methods_whose_seeds_touch_are_not_apart():
    x_MS = np.array([[1.0, 2.0], [2.0, 3.0], [4.0, 5.0]])  # the first two share 2
    for both_MS in (x_MS, x_MS[::-1]):
        assert separated_pairs(both_MS, both_MS) == (3, 2, 2)
