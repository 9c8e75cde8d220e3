"""Every function is seen once an epoch, and every rank knows the count of the whole step."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from example_sets import example_set, language_set, random_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import loader as loader_module
from data.batches.loader import Batching, TrainLoader, evaluation_batches
from data.batches.order import epoch_rng
from data.batches.packing import pack
from data.text.tokenization import ExampleSet

SEQ_LENGTH = 24


def loader(
    examples: ExampleSet,
    rank: int = 0,
    world_size: int = 1,
    files: dict[str, int] | None = None,
    **changes: Any,
) -> TrainLoader:
    batching = Batching(
        SEQ_LENGTH, global_batch_size=8, batch_unit="examples", micro_batch_size=2, seed=1
    )
    return TrainLoader(examples, replace(batching, **changes), rank, world_size, files)


def seen(train: TrainLoader, steps: range) -> list[int]:
    """Examples in the order in which one rank reads them."""
    return [
        int(example)
        for step in steps
        for batch in train.step(step).micro_batches
        for example in batch.example_S
    ]


def windowed(windows: list[int]) -> ExampleSet:
    """Functions cut into the given numbers of windows of five tokens."""
    records = [record for record, count in enumerate(windows) for _ in range(count)]
    return example_set([[7] * 5 for _ in records], records=records)


@settings(deadline=None)  # a busy machine
@given(
    num_examples=st.integers(1, 50),
    world_size=st.integers(1, 4),
    micro_batch_size=st.integers(1, 3),
    packing=st.booleans(),
    batch_unit=st.sampled_from(["examples", "rows"]),
)
def test_over_an_epoch_the_ranks_see_every_function_once(
    num_examples, world_size, micro_batch_size, packing, batch_unit
):
    examples = random_examples(num_examples, SEQ_LENGTH)
    ranks = [
        loader(
            examples,
            rank=rank,
            world_size=world_size,
            micro_batch_size=micro_batch_size,
            packing=packing,
            batch_unit=batch_unit,
        )
        for rank in range(world_size)
    ]
    for epoch in range(2):
        steps = ranks[0].plan.steps_per_epoch
        epoch_steps = range(epoch * steps, (epoch + 1) * steps)
        read = [example for rank in ranks for example in seen(rank, epoch_steps)]
        assert sorted(read) == list(range(num_examples))


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 4))
def test_the_count_of_a_step_is_the_sum_over_ranks_and_windows_add_up_to_functions(
    windows, world_size
):
    examples = windowed(windows)
    ranks = [loader(examples, rank=rank, world_size=world_size) for rank in range(world_size)]
    total = 0.0
    for step in range(ranks[0].plan.steps_per_epoch):
        parts = [rank.step(step) for rank in ranks]
        batches = [batch for part in parts for batch in part.micro_batches]
        # tolerance: sums of the same few dozen shares in another order
        assert parts[0].count == pytest.approx(sum(b.count for b in batches))
        assert parts[0].num_tokens == sum(batch.num_tokens for batch in batches)
        assert len({(part.count, part.num_tokens) for part in parts}) == 1
        assert len({len(part.micro_batches) for part in parts}) == 1
        total += parts[0].count
    assert total == pytest.approx(len(windows))


def test_shares_that_add_up_to_a_little_more_than_the_functions_add_no_step():
    examples = windowed([1, 6])
    assert examples.share_E.sum() > 2  # 1 + 6 x 1/6 in floating point
    assert loader(examples, global_batch_size=2).plan.steps_per_epoch == 1


def test_a_batch_in_functions_takes_as_many_steps_with_packing_as_without():
    examples = random_examples(80, SEQ_LENGTH)
    packed, unpacked = (loader(examples, packing=packing) for packing in (True, False))
    assert packed.plan.num_rows < unpacked.plan.num_rows == 80
    assert packed.plan.steps_per_epoch == unpacked.plan.steps_per_epoch == 10


def test_a_batch_in_rows_counts_rows():
    train = loader(random_examples(80, SEQ_LENGTH), packing=False, batch_unit="rows")
    assert train.plan.steps_per_epoch == 10
    packed = loader(random_examples(80, SEQ_LENGTH), batch_unit="rows")
    assert packed.plan.steps_per_epoch == -(-packed.plan.num_rows // 8)


def test_no_step_is_without_rows_when_rows_are_fewer_than_steps():
    # 12 one-token functions fit one row: a batch of 4 functions would take 3 steps of a row each
    train = loader(example_set([[1]] * 12), global_batch_size=4)
    assert (train.plan.num_rows, train.plan.steps_per_epoch) == (1, 1)
    assert train.step(0).count == 12


def test_without_packing_a_row_holds_one_function():
    train = loader(random_examples(20, SEQ_LENGTH), packing=False)
    batches = [batch for step in range(3) for batch in train.step(step).micro_batches]
    rows = [row for batch in batches for row in batch.row_S.tolist()]
    assert len(rows) == 20
    assert all(len(set(batch.row_S.tolist())) == len(batch.row_S) for batch in batches)


def test_a_step_depends_on_its_number_alone():
    examples = random_examples(40, 12)
    ahead = loader(examples)
    steps = ahead.plan.steps_per_epoch
    in_order = seen(ahead, range(3 * steps))
    assert in_order[:40] != in_order[40:80]  # otherwise the epochs prove nothing
    resumed = loader(examples)
    assert seen(resumed, range(2 * steps + 1, 3 * steps)) == seen(
        ahead, range(2 * steps + 1, 3 * steps)
    )
    assert seen(resumed, range(steps)) == in_order[:40]  # back to the first epoch as well
    assert seen(loader(examples), range(steps, 2 * steps)) == in_order[40:80]


def test_fill_is_the_share_of_real_tokens():
    # rows of 24 hold 20 + 4 and 12 + 6 tokens: 42 of 48
    train = loader(example_set([[1] * n for n in (20, 12, 6, 4)]))
    assert train.plan.num_rows == 2
    assert train.fill == 42 / 48


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("packing", [True, False])
def test_evaluation_reads_every_example_once_in_as_many_batches_on_each_rank(world_size, packing):
    examples = random_examples(37, SEQ_LENGTH)
    ranks = [
        list(
            evaluation_batches(
                examples,
                seq_length=SEQ_LENGTH,
                packing=packing,
                micro_batch_size=2,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    read = [int(e) for batches in ranks for batch in batches for e in batch.example_S]
    assert sorted(read) == list(range(37))


def test_evaluation_of_nothing_yields_nothing():
    settings = {"seq_length": 8, "micro_batch_size": 1, "rank": 0, "world_size": 1}
    for packing in (True, False):
        assert not list(evaluation_batches(example_set([]), packing=packing, **settings))


def test_the_count_of_a_language_step_is_its_supervised_tokens_but_the_first_of_an_example():
    rng = np.random.default_rng(3)
    masks = [rng.integers(0, 2, size=n).tolist() for n in rng.integers(2, 12, size=30)]
    train = loader(language_set([[5] * len(mask) for mask in masks], masks))
    counts = []
    for step in range(train.plan.steps_per_epoch):
        read = set(train.records(step, 0, 0)) | {
            record for m in range(1, 9) for record in _records(train, step, m)
        }
        counts.append(sum(sum(masks[record][1:]) for record in read))
        assert train.step(step).count == counts[-1]
    assert len(set(counts)) > 1
    assert sum(counts) != 30  # the number of records


def _records(train: TrainLoader, step: int, micro_batch: int) -> list[int]:
    is_there = micro_batch < train.plan.gradient_accumulation_steps
    return train.records(step, 0, micro_batch) if is_there else []


def test_the_records_of_a_micro_batch_are_those_of_all_its_rows():
    examples = windowed([2, 1, 3, 1, 1, 2, 4, 1])
    ranks = [loader(examples, rank=rank, world_size=2, seq_length=10) for rank in range(2)]
    num_rows = 0
    for step in range(ranks[0].plan.steps_per_epoch):
        for rank in range(2):
            for number, batch in enumerate(ranks[rank].step(step).micro_batches):
                expected = examples.record_E[batch.example_S].tolist()
                assert ranks[1 - rank].records(step, rank, number) == expected
                num_rows = max(num_rows, len(set(batch.row_S.tolist())))
    assert num_rows == 2  # or the second row could be forgotten


def test_records_of_a_step_are_counted_by_the_shares_of_their_windows():
    examples = windowed([1, 2, 4, 1, 2, 1, 1, 4])
    train = loader(examples, global_batch_size=2, micro_batch_size=8)
    counted = [train.step(step).num_records for step in range(train.plan.steps_per_epoch)]
    by_hand = []
    for step in range(train.plan.steps_per_epoch):
        (batch,) = train.step(step).micro_batches
        windows = np.bincount(examples.record_E)
        by_hand.append(sum(1 / windows[examples.record_E[e]] for e in batch.example_S))
    assert counted == pytest.approx(by_hand)
    assert sum(counted) == pytest.approx(8)
    assert train.num_records == pytest.approx(8)  # not 16 windows


def test_a_step_that_begins_with_the_first_record_of_a_file_has_the_files_before_it_finished():
    examples = example_set([[1] * SEQ_LENGTH] * 6)  # a row each
    train = loader(examples, files={"a": 0, "b": 2, "c": 3}, global_batch_size=1)
    assert [train.files_at(step) for step in range(6)] == [
        ([], ["a"]), ([], ["a"]), (["a"], ["b"]), *[(["a", "b"], ["c"])] * 3
    ]  # fmt: skip
    both = loader(examples, files={"a": 0, "b": 2, "c": 3}, global_batch_size=2)
    assert both.files_at(1) == (["a"], ["b", "c"])


def test_an_epoch_that_packs_into_fewer_rows_than_steps_takes_the_rows_of_the_first():
    examples = random_examples(200, 400, seed=2)
    train = loader(examples, seq_length=400, global_batch_size=1, batch_unit="rows")
    steps = train.plan.steps_per_epoch
    num_rows = [len(pack(examples.lengths, 400, epoch_rng(1, epoch))) for epoch in range(5)]
    assert num_rows[1] < steps < num_rows[4]  # seeded: one of each
    first = seen(train, range(steps))
    assert seen(train, range(steps, 2 * steps)) == first
    assert seen(train, range(4 * steps, 5 * steps)) != first
    assert all(train.step(step).num_tokens for step in range(5 * steps))


def test_an_epoch_of_exactly_as_many_rows_as_steps_has_an_order_of_its_own():
    examples = example_set([[1] * SEQ_LENGTH] * 12)  # a row each
    train = loader(examples, global_batch_size=1, batch_unit="rows", micro_batch_size=1)
    assert train.plan.steps_per_epoch == 12
    first, second = seen(train, range(12)), seen(train, range(12, 24))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_imbalance_of_a_step_is_counted_by_hand_and_its_mean_over_the_first_steps():
    examples = random_examples(240, SEQ_LENGTH)
    ranks = [
        loader(examples, rank=rank, world_size=2, packing=False, global_batch_size=2)
        for rank in range(2)
    ]
    expected = []
    for step in range(ranks[0].plan.steps_per_epoch):
        costs_WA = [
            [
                sum(6 * 2048 * n + n * n for n in examples.lengths[batch.example_S].tolist())
                for batch in rank.step(step).micro_batches
            ]
            for rank in ranks
        ]
        mean = sum(map(sum, costs_WA)) / 2
        worst = max(map(sum, costs_WA)) / mean
        expected.append((sum(map(max, zip(*costs_WA, strict=True))) / mean, worst))
        found = ranks[0].imbalance(step)
        assert (found.micro_step, found.optimizer_step) == pytest.approx(expected[-1], rel=1e-9)
    assert len(expected) == 120
    for mean_of, first in ((ranks[0].mean_imbalance(), 100), (ranks[1].mean_imbalance(7), 7)):
        means = np.mean(expected[:first], axis=0)
        assert (mean_of.micro_step, mean_of.optimizer_step) == pytest.approx(means, rel=1e-9)


def test_a_loader_alone_is_rank_0_of_1():
    examples = random_examples(20, SEQ_LENGTH)
    alone = TrainLoader(examples, loader(examples).batching)
    assert (alone.rank, alone.plan.world_size) == (0, 1)
    assert seen(alone, range(alone.plan.steps_per_epoch)) == seen(
        loader(examples), range(alone.plan.steps_per_epoch)
    )


def test_balanced_sampling_reads_the_rarer_class_as_often_as_the_other():
    examples = example_set([[1] * 5] * 12, labels=[0] * 9 + [1] * 3)
    train = loader(examples, sampling="balanced")
    read = seen(train, range(train.plan.steps_per_epoch))
    assert sorted(read) == sorted([*range(9), *[9, 10, 11] * 3])
    assert train.num_records == 18


def test_the_first_epoch_is_packed_once(monkeypatch):
    packed = []
    monkeypatch.setattr(
        loader_module.order, "epoch_rng", lambda *where: packed.append(where) or epoch_rng(*where)
    )
    train = loader(random_examples(40, SEQ_LENGTH))
    seen(train, range(2 * train.plan.steps_per_epoch))
    assert packed == [(1, 0), (1, 1)]


def test_evaluation_deals_the_costliest_rows_to_different_ranks():
    # Row costs 6 x 2048 x tokens + tokens squared, a row each: 9 and 8, then 2 and 1 tokens.
    examples = example_set([[1] * 9, [2], [3] * 8, [4] * 2])
    read = [
        [
            batch.example_S.tolist()
            for batch in evaluation_batches(
                examples, seq_length=9, packing=False, micro_batch_size=1, rank=rank, world_size=2
            )
        ]
        for rank in range(2)
    ]
    # 9 and 8 differ more and are dealt first; the rank of 8 has less and takes 2.
    assert read == [[[0], [1]], [[2], [3]]]
