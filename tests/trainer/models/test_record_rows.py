"""Records as padded rows: every token once, little padding, states back at their places."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batches.batch import collate
from data.text.tokenization import ExampleSet
from trainer.models.record_rows import MOST_PADDING, group_by_length, record_rows

PAD = 999


def functions(lengths):
    count, tokens = len(lengths), np.arange(1, 1 + sum(lengths), dtype=np.int32)
    return ExampleSet(
        tokens, np.cumsum([0, *lengths]), np.arange(count), np.zeros(count, np.int64),
        np.ones(count), np.ones(count), count,
    )  # fmt: skip


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60))
def test_each_record_is_in_one_pass_and_padding_stays_below_a_tenth(lengths):
    lengths_R = np.array(lengths)
    passes = group_by_length(lengths_R)
    assert sorted(np.concatenate(passes).tolist()) == list(range(len(lengths)))
    places = sum(len(records) * max(lengths[n] for n in records) for records in passes)
    assert places - sum(lengths) <= MOST_PADDING * places


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 5))
def test_a_fixed_number_of_passes_is_kept(lengths, wanted):
    passes = group_by_length(np.array(lengths), wanted)
    assert len(passes) == wanted
    assert set(np.concatenate(passes).tolist()) == set(range(len(lengths)))


@pytest.mark.parametrize("num_passes", [None, 1, 2, 7])
def test_states_come_back_to_the_places_they_are_read_at(num_passes):
    lengths = [5, 40, 6, 1, 38, 7, 39]
    batch = collate(functions(lengths), [np.array([0, 1, 2]), np.array([3, 4, 5, 6])])
    rows = record_rows(batch, PAD, num_passes)
    for ids_NL, mask_NL in rows.inputs:
        assert ((ids_NL == PAD) == (mask_NL == 0)).all()
        assert (mask_NL.diff(dim=1) <= 0).all()  # padding on the right

    def run(ids_NL, mask_NL):  # a record's state is its running sum: neighbours would change it
        return (ids_NL * mask_NL).cumsum(1)[..., None].double()

    ends = np.cumsum(lengths)
    tokens = np.arange(1, 1 + sum(lengths))
    by_hand = [tokens[end - length : end].sum() for end, length in zip(ends, lengths, strict=True)]
    assert rows.states(batch, run)[:, 0].tolist() == by_hand
    of_records = rows.of_records(batch, lambda ids, mask: (ids * mask).sum(1))
    assert of_records.tolist() == by_hand


def test_a_batch_of_padding_is_one_pass_of_one_token():
    rows = record_rows(collate(functions([3]), []), PAD)
    assert [tuple(ids.shape) for ids, _ in rows.inputs] == [(1, 1)]
    assert rows.place_P.numel() == 8
    assert torch.equal(rows.states(collate(functions([3]), []), lambda ids, _: ids[..., None]),
                       torch.zeros(0, 1, dtype=torch.long))  # fmt: skip
