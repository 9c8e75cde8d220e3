"""Another batch size in the middle of a run trains exactly the rest of the epochs."""

from dataclasses import replace

import numpy as np
import pytest
from example_sets import example_set, random_examples

from data.batches.loader import Batching, Start, TrainLoader
from data.batches.order import epoch_rng
from data.batches.packing import one_per_row, pack

SEQ_LENGTH, SEED, EPOCHS = 24, 3, 3
EXAMPLES = random_examples(96, SEQ_LENGTH)


def ranks_of(size, world_size, start, **changes):
    batching = replace(Batching(SEQ_LENGTH, size, "examples", 2, SEED), **changes)
    return [
        TrainLoader(EXAMPLES, batching, rank, world_size, start=start) for rank in range(world_size)
    ]


def read(loaders, step):
    batches = [batch for one in loaders for batch in one.step(step).micro_batches]
    return [int(example) for batch in batches for example in batch.example_S]


def order_of(epoch, packing):
    """Examples of an epoch in the order of its rows, by the packer alone."""
    rng = epoch_rng(SEED, epoch)
    if not packing:
        return one_per_row(len(EXAMPLES), rng).examples.tolist()
    return pack(EXAMPLES.lengths, SEQ_LENGTH, rng).examples.tolist()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("unit", ["examples", "rows"])
@pytest.mark.parametrize(
    ("sizes", "stops"),
    [
        pytest.param([8, 32], [5], id="larger"),
        pytest.param([32, 8], [1], id="smaller"),
        pytest.param([8, 12], [3], id="not-a-divisor"),
        pytest.param([8, 32, 12, 8], [5, 6, 8], id="three-times-in-an-epoch"),
        pytest.param([32, 8, 32], [4, 9], id="second-epoch"),
    ],
)
def test_every_epoch_is_read_once_in_its_order(sizes, stops, unit, world_size, packing):
    start, steps, step = Start(), [], 0
    for size, stop in zip(sizes, [*stops, None], strict=True):
        loaders = ranks_of(size, world_size, start, packing=packing, batch_unit=unit)
        end = loaders[0].steps_until(EPOCHS) if stop is None else stop
        steps += [read(loaders, number) for number in range(step, end)]
        step, start = end, loaders[0].position(end)
    assert start == Start(step, EPOCHS, 0, start.least_rows)
    expected = [one for epoch in range(EPOCHS) for one in order_of(epoch, packing)]
    assert len(expected) == EPOCHS * 96
    assert sum(map(len, steps)) == len(expected)
    for examples in steps:  # a step's rows are dealt to ranks by cost
        assert examples
        assert sorted(examples) == sorted(expected[: len(examples)])
        expected = expected[len(examples) :]


FILES = {"a.jsonl": 0, "b.jsonl": 11, "c.jsonl": 70}
SETTINGS = {
    "balanced": ({"sampling": "balanced"}, None),
    "balanced windows": ({"sampling": "balanced", "packing_window": 16}, None),
    "sequential": ({}, FILES),
    "sequential, one example a row": ({"packing": False}, FILES),
    "one text": ({"isolate": False}, FILES),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_any_sampling_and_order_is_read_as_by_a_run_without_a_change(name):
    """A step's rows are dealt by cost, so steps are compared as multisets, in their order."""
    changes, files = SETTINGS[name]

    def loaders(size, world_size, start):
        batching = replace(Batching(SEQ_LENGTH, size, "examples", 2, SEED), **changes)
        return [
            TrainLoader(examples, batching, rank, world_size, files, start)
            for rank in range(world_size)
        ]

    examples = replace(EXAMPLES, label_E=np.array([number % 5 == 0 for number in range(96)]))
    [whole] = loaders(8, 1, Start())
    rows = [whole._epoch_rows(epoch).examples.tolist() for epoch in range(EPOCHS)]
    expected = [one for epoch in rows for one in epoch]
    [before] = loaders(8, 1, Start())
    stop = before.plan.steps_per_epoch + 3
    after = loaders(20, 3, before.position(stop))
    steps = [read([before], step) for step in range(stop)]
    steps += [read(after, step) for step in range(stop, after[0].steps_until(EPOCHS))]
    assert sum(map(len, steps)) == len(expected) >= EPOCHS * 96
    for one in steps:
        assert sorted(one) == sorted(expected[: len(one)])
        expected = expected[len(one) :]


@pytest.mark.parametrize("rows", [6, 12, 24])
def test_a_batch_changed_at_the_end_of_an_epoch_begins_the_next(rows):
    [before] = ranks_of(8, 1, Start(), packing=False)
    [after] = ranks_of(rows, 1, before.position(12), packing=False)
    assert after.start == Start(12, 1, 0, 12)
    assert after.steps_until(2) == 12 + 96 // rows
    assert sorted(e for s in range(12, 12 + 96 // rows) for e in read([after], s)) == list(
        range(96)
    )


def test_the_position_is_that_of_arithmetic_by_hand():
    [before] = ranks_of(8, 1, Start(), packing=False)  # 12 steps an epoch
    start = before.position(15)  # the second epoch, after 3 steps of 8
    assert start == Start(15, 1, 24, 12)
    [after] = ranks_of(32, 1, start, packing=False)  # 3 steps an epoch
    assert after.records_done(15) == (24, 96)
    assert after.steps_until(2) == 15 + 3  # 72 examples in steps of at most 32
    assert after.steps_until(3) == 15 + 3 + 3
    assert [after.epochs_done(s) for s in (15, 16, 18, 21)] == [1.25, 1.5, 2.0, 3.0]
    # a run of 32 from the beginning would do its last three steps of six here: 3, 4 and 5
    assert [s + after.steps_ahead for s in (15, 16, 17)] == [3, 4, 5]
    assert after.steps_until(1) <= 15  # nothing is left of an epoch


def test_a_run_without_a_change_keeps_its_steps():
    [whole] = ranks_of(8, 1, Start())
    [other_ranks] = ranks_of(8, 1, Start(), micro_batch_size=1)
    for step in range(2 * whole.plan.steps_per_epoch):
        assert sorted(read([whole], step)) == sorted(read([other_ranks], step))
        assert whole.epochs_done(step) == step / whole.plan.steps_per_epoch
    assert whole.steps_ahead == 0


def test_documents_in_windows_are_counted_whole():
    # 30 documents: ten whole ones, ten in two windows, ten in three
    records = [number for number in range(30) for _ in range(number // 10 + 1)]
    examples = example_set([[7] * 9 for _ in records], records=records)
    batching = Batching(SEQ_LENGTH, 8, "examples", 2, SEED)
    before = TrainLoader(examples, batching)
    after = TrainLoader(examples, replace(batching, global_batch_size=12), start=before.position(2))
    assert after.start.rows_done == 2 * before.plan.num_rows // before.plan.steps_per_epoch
    done, whole = after.records_done(2)
    left = sum(after.step(s).num_records for s in range(2, after.steps_until(1)))
    assert done + left == pytest.approx(whole) == pytest.approx(30)
