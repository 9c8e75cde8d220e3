"""The rows of a step are arithmetic: nothing is lost, repeated or moved by the machine's shape."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.order import Plan, epoch_rng, rank_micro_batches, step_rows, steps_for


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    num_rows = draw(st.integers(1, 80))
    return Plan(
        num_rows=num_rows,
        steps_per_epoch=draw(st.integers(1, num_rows)),
        micro_batch_size=draw(st.integers(1, 5)),
        world_size=draw(st.integers(1, 5)),
    )


def all_ranks(plan: Plan, step: int) -> list[list[list[int]]]:
    return [rank_micro_batches(plan, step, rank) for rank in range(plan.world_size)]


def test_seven_rows_in_three_steps_on_two_ranks_as_by_hand():
    plan = Plan(num_rows=7, steps_per_epoch=3, micro_batch_size=1, world_size=2)
    assert [list(step_rows(plan, step)) for step in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert plan.gradient_accumulation_steps == 2  # three rows over two ranks
    assert all_ranks(plan, 2) == [[[4], [6]], [[5], []]]
    assert all_ranks(plan, 0) == [[[0], []], [[1], []]]


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
    ranks = all_ranks(plan, step)
    rows = [row for batches in ranks for batch in batches for row in batch]
    assert len(rows) == len(set(rows))
    assert set(rows) == set(step_rows(plan, step))


@given(plans(), st.integers(0, 200))
def test_every_rank_has_as_many_micro_batches_and_none_is_too_large(plan, step):
    ranks = all_ranks(plan, step)
    assert {len(batches) for batches in ranks} == {plan.gradient_accumulation_steps}
    assert all(len(batch) <= plan.micro_batch_size for batches in ranks for batch in batches)


@given(plans(), st.integers(1, 6), st.integers(1, 6), st.integers(0, 200))
def test_another_machine_sees_the_same_rows_in_the_same_step(plan, world_size, size, step):
    other = replace(plan, world_size=world_size, micro_batch_size=size)

    def rows(of: Plan) -> list[int]:
        """In the order in which the passes of all ranks read them."""
        passes = zip(*all_ranks(of, step), strict=True)
        return [row for ranks in passes for batch in ranks for row in batch]

    assert rows(other) == rows(plan) == list(step_rows(plan, step))


def test_a_step_of_the_second_epoch_takes_the_places_of_the_first():
    plan = Plan(num_rows=10, steps_per_epoch=4, micro_batch_size=1, world_size=1)
    assert step_rows(plan, 6) == step_rows(plan, 2)


def test_the_order_depends_on_seed_and_epoch_alone():
    def draw(seed: int, epoch: int) -> list[int]:
        return epoch_rng(seed, epoch).permutation(30).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
