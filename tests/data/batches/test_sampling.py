"""Balanced epochs leave no function out and hold as many functions of either class."""

import numpy as np
from example_sets import example_set
from hypothesis import given
from hypothesis import strategies as st

from data.batches.loader import Batching, TrainLoader
from data.batches.sampling import balanced, weighted


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_classes_match_and_repetitions_of_a_class_differ_by_at_most_one(safe, vulnerable, seed):
    label_E = np.array([0] * safe + [1] * vulnerable, dtype=np.int8)
    chosen = balanced(label_E, np.arange(len(label_E)), np.random.default_rng(seed))
    times = np.bincount(chosen, minlength=len(label_E))
    most = max(safe, vulnerable)
    assert [times[label_E == c].sum() for c in (0, 1)] == [most, most]
    assert times.min() >= 1
    assert all(np.ptp(times[label_E == c]) <= 1 for c in (0, 1))


def test_windows_of_a_function_come_together_and_count_as_one_function():
    # functions 0 and 1 (safe; 0 has three windows) and 2 (vulnerable, two windows)
    record_E = np.array([0, 0, 0, 1, 2, 2])
    label_E = np.array([0, 0, 0, 0, 1, 1], dtype=np.int8)
    chosen = balanced(label_E, record_E, np.random.default_rng(0))
    assert chosen.tolist() == [0, 1, 2, 3, 4, 4, 5, 5]


def test_a_balanced_epoch_has_its_own_number_of_steps_and_new_repetitions_every_time():
    labels = [1] * 8 + [0] * 43
    examples = example_set([[n + 1] * 3 for n in range(51)], labels=labels)
    batching = Batching(
        12, global_batch_size=8, batch_unit="examples", micro_batch_size=2, seed=1,
        sampling="balanced",
    )  # fmt: skip
    loader = TrainLoader(examples, batching)
    assert loader.num_records == 86
    assert loader.plan.steps_per_epoch == 11  # 86 functions, 8 a step
    epochs = []
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * 11, epoch * 11 + 11):
            for batch in loader.step(step).micro_batches:
                seen += batch.example_S.tolist()
        times = np.bincount(seen, minlength=51)
        assert times[8:].tolist() == [1] * 43
        assert times[:8].sum() == 43
        epochs.append(times[:8].tolist())
    assert epochs[0] != epochs[1]


def test_records_come_as_often_as_their_weight_says_and_a_fraction_is_drawn_anew():
    times_N = np.array([0.25] * 40 + [1.0] * 10 + [2.5] * 4)
    record_E = np.array([*range(54), 50, 51])  # records 50 and 51 have two windows
    epochs = []
    for seed in range(2):
        chosen = weighted(times_N, record_E, np.random.default_rng(seed))
        count_E = np.bincount(chosen, minlength=56)
        assert (count_E[:40].sum(), count_E[40:50].tolist()) == (10, [1] * 10)
        assert sorted(count_E[50:54].tolist()) == [2, 2, 3, 3]
        assert count_E[54:].tolist() == count_E[50:52].tolist()
        assert np.all(np.diff(chosen) >= 0)
        epochs.append(count_E.tolist())
    assert epochs[0] != epochs[1]


def test_an_epoch_with_weights_has_their_number_of_records():
    examples = example_set([[n + 1] * 3 for n in range(50)], labels=[0, 1] * 25)
    batching = Batching(12, global_batch_size=8, batch_unit="examples", micro_batch_size=2, seed=1)
    times_N = np.array([0.5] * 20 + [2.0] * 30)
    assert TrainLoader(examples, batching, times_N=times_N).num_records == 70
