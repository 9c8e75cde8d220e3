"""The rows of a step are arithmetic: nothing is lost, repeated or moved by the machine's shape."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batches.order import (
    MicroBatches,
    Plan,
    epoch_rng,
    imbalance,
    rank_micro_batches,
    row_costs,
    step_rows,
    steps_for,
)
from data.batches.packing import pack


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    num_rows = draw(st.integers(1, 80))
    return Plan(
        num_rows=num_rows,
        steps_per_epoch=draw(st.integers(1, num_rows)),
        micro_batch_size=draw(st.integers(1, 5)),
        world_size=draw(st.integers(1, 5)),
    )


def costs_of(plan: Plan, step: int) -> np.ndarray:
    """Any costs, equal for equal rows whatever the machine."""
    return np.random.default_rng(0).integers(1, 100, plan.num_rows)[list(step_rows(plan, step))]


def deal(plan: Plan, step: int) -> MicroBatches:
    return rank_micro_batches(plan, step, costs_of(plan, step))


def in_order(plan: Plan, step: int) -> MicroBatches:
    """Row after row to rank after rank: what balancing is compared with."""
    rows, size = list(step_rows(plan, step)), plan.micro_batch_size
    starts = range(0, plan.gradient_accumulation_steps * plan.world_size * size, size)
    batches = [rows[start : start + size] for start in starts]
    return [batches[rank :: plan.world_size] for rank in range(plan.world_size)]


def test_seven_rows_in_three_steps_on_two_ranks_as_by_hand():
    plan = Plan(num_rows=7, steps_per_epoch=3, micro_batch_size=1, world_size=2)
    assert [list(step_rows(plan, step)) for step in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert plan.gradient_accumulation_steps == 2  # three rows over two ranks
    # 9 and 8 share a micro-step, 5 is alone; it differs most, so it is dealt first: rank 0
    # has 5, then rank 1 has less and takes 9
    assert rank_micro_batches(plan, 2, np.array([8, 5, 9])) == [[[4], [5]], [[6], []]]
    assert rank_micro_batches(plan, 0, np.array([1, 2])) == [[[1], []], [[0], []]]


def test_a_micro_batch_of_two_joins_dear_and_cheap_rows_as_by_hand():
    plan = Plan(num_rows=8, steps_per_epoch=1, micro_batch_size=2, world_size=2)
    # the first micro-step has 90 + 60 and 80 + 70, the second 40 + 1 and 30 + 20, which differ more
    # and are dealt first: rank 0 takes 50, rank 1 then has less and takes the first of the equals
    micro_batches = rank_micro_batches(plan, 0, np.array([90, 40, 80, 30, 70, 20, 60, 1]))
    assert micro_batches == [[[2, 4], [3, 5]], [[0, 6], [1, 7]]]  # the dearer row first


def test_the_accumulation_of_a_four_gpu_node_as_by_hand():
    # 810 rows in 26 steps: at most 32 rows a step, 4 ranks x 2 rows a forward pass
    assert Plan(810, 26, micro_batch_size=2, world_size=4).gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    ("num_units", "units_per_step", "steps"),
    [(810, 32, 26), (32, 32, 1), (33, 32, 2), (31.5, 32, 1), (64, 32, 2), (1, 1000, 1), (0, 8, 1)],
)
def test_steps_of_an_epoch_by_hand(num_units, units_per_step, steps):
    assert steps_for(num_units, units_per_step) == steps


@given(plans())
def test_an_epoch_covers_every_row_once_and_evenly(plan):
    steps = [list(step_rows(plan, step)) for step in range(plan.steps_per_epoch)]
    assert [row for rows in steps for row in rows] == list(range(plan.num_rows))
    assert max(map(len, steps)) - min(map(len, steps)) <= 1
    assert min(map(len, steps)) >= 1


@given(plans(), st.integers(0, 200))
def test_the_ranks_of_a_step_share_its_rows_without_loss_or_repetition(plan, step):
    ranks = deal(plan, step)
    rows = [row for batches in ranks for batch in batches for row in batch]
    assert len(rows) == len(set(rows))
    assert set(rows) == set(step_rows(plan, step))


@given(plans(), st.integers(0, 200))
def test_every_rank_has_as_many_micro_batches_and_none_is_too_large(plan, step):
    ranks = deal(plan, step)
    assert {len(batches) for batches in ranks} == {plan.gradient_accumulation_steps}
    assert all(len(batch) <= plan.micro_batch_size for batches in ranks for batch in batches)


@given(plans(), st.integers(1, 6), st.integers(1, 6), st.integers(0, 200))
def test_another_machine_sees_the_same_rows_in_the_same_step(plan, world_size, size, step):
    other = replace(plan, world_size=world_size, micro_batch_size=size)

    def rows(of: Plan) -> list[int]:
        return sorted(row for rank in deal(of, step) for batch in rank for row in batch)

    assert rows(other) == rows(plan) == list(step_rows(plan, step))


@given(plans(), st.integers(0, 200))
def test_rows_of_one_micro_step_cost_more_than_those_of_the_next(plan, step):
    costs, first = costs_of(plan, step), step_rows(plan, step).start
    passes = zip(*deal(plan, step), strict=True)
    of_pass = [[costs[row - first] for batch in ranks for row in batch] for ranks in passes]
    filled = [values for values in of_pass if values]
    assert all(min(one) >= max(two) for one, two in pairwise(filled))


def test_the_micro_step_that_differs_most_is_dealt_first_though_it_is_the_costlier():
    plan = Plan(num_rows=4, steps_per_epoch=1, micro_batch_size=1, world_size=2)
    # Rank 0 takes 90; then rank 1 has less and takes the dearer of 41 and 40.
    assert rank_micro_batches(plan, 0, np.array([90, 50, 41, 40])) == [[[0], [3]], [[1], [2]]]


def test_equal_rows_are_dealt_in_their_order():
    plan = Plan(num_rows=6, steps_per_epoch=1, micro_batch_size=1, world_size=3)
    assert rank_micro_batches(plan, 0, np.full(6, 7)) == [[[0], [3]], [[1], [4]], [[2], [5]]]


def skewed_costs(num_steps: int, num_rows: int) -> np.ndarray:
    """Rows of as many tokens whose attention differs, as that of packed rows does."""
    return 50_000 + np.random.default_rng(0).gamma(2, 10_000, (num_steps, num_rows)).astype(
        np.int64
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_dealing_by_cost_waits_far_less_than_dealing_in_order(size):
    plan = Plan(num_rows=64 * size, steps_per_epoch=1, micro_batch_size=size, world_size=8)
    balanced, plain = [], []
    for costs in skewed_costs(50, 64 * size):
        balanced.append(imbalance(rank_micro_batches(plan, 0, costs), costs))
        plain.append(imbalance(in_order(plan, 0), costs))
    for kind in ("micro_step", "optimizer_step"):
        waiting, before = (
            np.mean([getattr(step, kind) for step in steps]) - 1 for steps in (balanced, plain)
        )
        assert before > 0.01  # otherwise there is nothing to even out
        assert 4 * waiting < before


def test_imbalance_is_the_slowest_rank_over_the_mean_as_by_hand():
    # micro-steps cost 4 and 2, then 1 and 3: slowest 4 + 3, mean 3 + 2; steps cost 5 and 5
    even = imbalance([[[10], [13]], [[12], [11]]], np.array([4, 3, 2, 1]))
    assert (even.micro_step, even.optimizer_step) == (7 / 5, 1)
    # one rank has everything: the other waits all the time
    alone = imbalance([[[0, 1]], [[]]], np.array([3, 4]))
    assert (alone.micro_step, alone.optimizer_step) == (2, 2)
    nothing = imbalance([[[]], [[]]], np.zeros(0, dtype=np.int64))
    assert (nothing.micro_step, nothing.optimizer_step) == (1, 1)


@given(st.lists(st.integers(1, 24), min_size=1, max_size=40), st.data())
def test_a_row_costs_its_tokens_in_the_matrices_and_the_square_of_each_function(lengths, data):
    rows = pack(np.array(lengths, dtype=np.int32), 24, np.random.default_rng(0))
    first = data.draw(st.integers(0, len(rows) - 1))
    places = range(first, data.draw(st.integers(first + 1, len(rows))))
    naive = [
        6 * 5 * sum(lengths[e] for e in rows.row(place))
        + sum(lengths[e] ** 2 for e in rows.row(place))
        for place in places
    ]
    costs_R = row_costs(np.array(lengths, dtype=np.int32), rows, places, hidden_size=5)
    assert costs_R.dtype == np.int64
    assert costs_R.tolist() == naive
    tokens = np.array(lengths, dtype=np.int32)
    assert row_costs(tokens, rows, places).tolist() == (
        row_costs(tokens, rows, places, hidden_size=2048).tolist()
    )


def test_a_step_of_the_second_epoch_takes_the_places_of_the_first():
    plan = Plan(num_rows=10, steps_per_epoch=4, micro_batch_size=1, world_size=1)
    assert step_rows(plan, 6) == step_rows(plan, 2)


def test_the_order_depends_on_seed_and_epoch_alone():
    def draw(seed: int, epoch: int) -> list[int]:
        return epoch_rng(seed, epoch).permutation(30).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
