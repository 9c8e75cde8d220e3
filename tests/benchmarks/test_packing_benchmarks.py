"""The benchmarks of packing and input measure what they say, on small arrays."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks import input_pipeline, packed_step, packing
from benchmarks.lengths import Packed, lag1, lower_bound, repeated_pairs, resampled
from benchmarks.packers import PEERS, installed
from benchmarks.tables import Goal
from data.batches.order import epoch_rng
from data.batches.packing import pack

REAL = np.random.default_rng(0).lognormal(5, 1, 500).clip(8, 2000).astype(np.int64)


def packed(*rows: list[int], ids: bool = False) -> Packed:
    flat = np.array([value for row in rows for value in row])
    return Packed(flat, np.cumsum([0, *map(len, rows)]), flat if ids else None)


def test_the_lower_bound_as_by_hand():
    assert lower_bound(np.array([5, 5, 5, 5]), 10) == 2  # the tokens alone
    assert lower_bound(np.array([6, 6, 6]), 10) == 3  # none fits beside another
    # 7 and 7 take a row each and leave 3 + 3, where nothing of 4 fits: 4 + 4 + 4 need two more
    assert lower_bound(np.array([7, 7, 4, 4, 4]), 10) == 4
    assert lower_bound(np.array([8, 2, 6]), 10) == 2


@pytest.mark.parametrize("name", [name for name in PEERS if PEERS[name][1] is None])
def test_a_reimplemented_packer_keeps_every_example_in_rows_that_fit(name):
    lengths = resampled(REAL, 2000, 1024)
    assert installed(name)
    rows = PEERS[name][0](lengths, 1024)
    assert rows.ids is not None
    assert sorted(rows.ids.tolist()) == list(range(len(lengths)))
    assert np.add.reduceat(rows.lengths, rows.starts[:-1]).max() <= 1024
    assert len(rows.starts) - 1 >= lower_bound(lengths, 1024)


def test_next_fit_and_knapsack_as_by_hand():
    lengths = np.array([6, 5, 4, 3, 2])
    next_fit, knapsack = (
        PEERS[name][0](lengths, 10) for name in ("torchtune next-fit", "LLaMA-Factory knapsack")
    )
    assert [next_fit.lengths[a:b].tolist() for a, b in pairwise(next_fit.starts)] == [
        [6], [5, 4], [3, 2]
    ]  # fmt: skip
    assert [knapsack.lengths[a:b].tolist() for a, b in pairwise(knapsack.starts)] == [
        [6, 4], [5, 3, 2]
    ]  # fmt: skip


def test_pairs_and_autocorrelation_as_by_hand():
    one, two = packed([0, 1, 2], [3, 4], ids=True), packed([0, 1, 3], [2, 4], ids=True)
    assert repeated_pairs(one, two) == 1 / 4  # 0-1 of 0-1, 0-2, 1-2, 3-4
    assert lag1(packed(*([10 * i] for i in range(9)))) == pytest.approx(1)
    assert lag1(packed(*([i % 2] for i in range(9)))) == pytest.approx(-1)


def test_a_goal_with_a_negative_bound_is_the_least():
    assert Goal("", 0.9, 1).met
    assert not Goal("", 1.1, 1).met
    assert Goal("", 6, -5).met
    assert not Goal("", 4, -5).met


def test_our_packing_is_measured():
    lengths = resampled(REAL, 2000, 1024)
    for window in (None, 512):
        result = packing.measure_ours(lengths, 1024, window)
        assert 0 <= result.over < 0.05
        assert result.cpu_seconds > 0
        assert 0 <= result.repeated < 0.2
        assert result.bytes_per_example > 8  # the examples themselves


def test_balance_is_measured_against_dealing_in_order():
    lengths = resampled(REAL, 2000, 1024)
    rows = pack(lengths, 1024, epoch_rng(0, 0))
    found = input_pipeline.measure_balance(lengths, rows, (4, 4, 1))
    assert 1 <= found["step"] < found["step, in order"]
    assert 1 <= found["micro"] < found["micro, in order"]


@pytest.mark.filterwarnings("ignore")  # of the libraries measured
def test_every_collator_that_is_installed_is_measured():
    found = input_pipeline.measure_collation(REAL, num_batches=1)
    assert {"focaltune, map of uint16", "Hugging Face flattening"} <= set(found)
    assert min(found.values()) > 0


@pytest.mark.filterwarnings("ignore")
def test_every_layout_takes_a_step(monkeypatch):
    monkeypatch.setattr(packed_step, "TOKENS_A_BATCH", 128)
    found = packed_step.measure(REAL[REAL < 64], 64, num_batches=1, width=64, layers=1)
    assert set(found) == set(packed_step.LAYOUTS)
    assert min(found.values()) > 0
