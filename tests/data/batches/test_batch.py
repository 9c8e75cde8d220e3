"""A batch is laid out as its docstring draws it, and reads labels where the packer put them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from example_sets import example_set, random_examples
from hypothesis import given
from hypothesis import strategies as st

from data.batches import batch as batch_module
from data.batches.batch import collate
from data.batches.packing import pack

A, B, C, D, E, END = 11, 12, 13, 14, 15, 99


def rows_of(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def test_the_row_of_the_docstring_is_laid_out_as_drawn(monkeypatch):
    monkeypatch.setattr(batch_module, "_WIDTH_MULTIPLE", 9)  # the drawing is nine columns wide
    batch = collate(example_set([[A, B, C, END], [D, E, END]], labels=[0, 1]), rows_of([0, 1]))
    assert batch.input_ids_BT.tolist() == [[A, B, C, END, D, E, END, 0, 0]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert batch.segment_ids_BT.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2]]
    assert batch.segment_lengths == (4, 3, 2)
    assert batch.row_S.tolist() == [0, 0]
    assert batch.read_S.tolist() == [3, 6]
    assert batch.labels_S.tolist() == [0, 1]
    assert batch.example_S.tolist() == [0, 1]
    assert (batch.count, batch.num_tokens) == (2.0, 7)


def test_rows_are_as_wide_as_the_longest_rounded_up_to_a_multiple_of_eight():
    examples = example_set([[1] * 9, [2] * 3, [3] * 16])
    batch = collate(examples, rows_of([1], [0]))
    assert batch.input_ids_BT.tolist() == [[2] * 3 + [0] * 13, [1] * 9 + [0] * 7]
    assert batch.segment_lengths == (3, 13, 9, 7)
    assert batch.row_S.tolist() == [0, 1]
    assert batch.read_S.tolist() == [2, 8]
    full = collate(examples, rows_of([2]))
    assert full.segment_lengths == (16,)  # no padding, so no segment of padding
    assert full.segment_ids_BT.unique().tolist() == [0]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 99))
def test_any_packing_keeps_tokens_positions_and_segments_apart(num_examples, num_rows, seed):
    examples = random_examples(num_examples, longest=20, seed=seed)
    packed = pack(examples.lengths, 20, np.random.default_rng(seed))
    rows = [packed.row(index) for index in range(min(num_rows, len(packed)))]
    batch = collate(examples, rows)
    assert batch.input_ids_BT.shape[1] % 8 == 0
    assert sum(batch.segment_lengths) == batch.input_ids_BT.numel()
    for place, row in enumerate(rows):
        tokens = batch.input_ids_BT[place].tolist()
        column = 0
        for segment, example in enumerate(row.tolist()):
            # token value index + 1 fills the whole of example `index`
            length = int(examples.lengths[example])
            part = slice(column, column + length)
            assert tokens[part] == [example + 1] * length
            assert batch.position_ids_BT[place][part].tolist() == list(range(length))
            assert set(batch.segment_ids_BT[place][part].tolist()) == {segment}
            column += length
        assert not any(tokens[column:])
        assert set(batch.segment_ids_BT[place][column:].tolist()) <= {len(row)}
    read = batch.input_ids_BT[batch.row_S, batch.read_S]
    assert read.tolist() == [example + 1 for row in rows for example in row.tolist()]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_memory_map_of_tokens_gives_the_batch_of_the_array(tmp_path, dtype):
    examples = random_examples(30, longest=20, seed=3)
    examples.tokens.astype(dtype).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype=dtype, mode="r")
    packed = pack(examples.lengths, 20, np.random.default_rng(0))
    rows = [packed.row(index) for index in range(len(packed))]
    from_array, from_map = collate(examples, rows), collate(replace(examples, tokens=tokens), rows)
    assert from_map.input_ids_BT.dtype == torch.int64
    assert type(from_array.input_ids_BT) is type(from_map.input_ids_BT) is torch.Tensor
    assert torch.equal(from_array.input_ids_BT, from_map.input_ids_BT)
    assert from_map.num_tokens == len(tokens)


def test_padding_is_zero_where_the_tokens_end_before_it_does():
    examples = example_set([[A, END], [B] * 9])
    assert collate(examples, rows_of([0])).input_ids_BT.tolist() == [[A, END] + [0] * 6]
    assert collate(examples, rows_of([1])).input_ids_BT.tolist() == [[B] * 9 + [0] * 7]


@pytest.mark.parametrize("end", [END, 0], ids=["end-token-is-99", "end-token-is-the-padding"])
def test_labels_are_read_at_recorded_places_even_if_the_end_token_is_code_or_padding(end):
    examples = example_set([[A, end, B, end], [end, end], [C, end]])
    batch = collate(examples, rows_of([0, 1], [2]))
    assert list(zip(batch.row_S.tolist(), batch.read_S.tolist(), strict=True)) == [
        (0, 3),
        (0, 5),
        (1, 1),
    ]
    assert batch.segment_ids_BT.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1]]


def test_a_function_weighs_its_group_times_its_share_and_windows_count_as_one_function():
    examples = example_set(
        [[A] * 4, [B] * 4, [C] * 4, [D] * 2],
        records=[0, 0, 0, 1],
        labels=[1, 1, 1, 0],
        weights=[2.0, 2.0, 2.0, 0.5],
    )
    batch = collate(examples, rows_of([0, 3], [1, 2]))
    assert batch.labels_S.tolist() == [1, 0, 1, 1]
    third = float(np.float32(2 / 3))
    assert batch.weights_S.tolist() == [third, 0.5, third, third]
    assert batch.weights_S.dtype == torch.float32
    assert batch.count == pytest.approx(2.0, abs=1e-12)  # float sum of 1/3, 1/3, 1/3, 1
    assert collate(examples, rows_of([0, 3])).count == pytest.approx(4 / 3, abs=1e-12)


def test_a_micro_batch_without_rows_is_padding_only_and_can_be_indexed():
    batch = collate(example_set([[A, END]]), [])
    assert batch.input_ids_BT.shape == batch.position_ids_BT.shape == (1, 8)
    assert batch.position_ids_BT.tolist() == [list(range(8))]
    assert batch.segment_lengths == (8,)
    assert batch.row_S.shape == batch.read_S.shape == batch.labels_S.shape == (0,)
    assert batch.weights_S.dtype == torch.float32
    assert (batch.count, batch.num_tokens) == (0.0, 0)
    assert batch.input_ids_BT[batch.row_S, batch.read_S].shape == (0,)


def test_a_split_without_examples_gives_a_batch_of_padding_too():
    assert collate(example_set([]), []).input_ids_BT.tolist() == [[0] * 8]


def test_indices_are_int64_and_move_with_the_batch():
    batch = collate(example_set([[A, END]]), rows_of([0])).to(torch.device("meta"))
    tensors = {
        name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
    }
    assert len(tensors) == 7
    assert {value.device.type for value in tensors.values()} == {"meta"}
    assert {value.dtype for name, value in tensors.items() if name != "weights_S"} == {torch.int64}


def test_a_pinned_batch_has_all_tensors_in_memory_that_a_gpu_copies_from(monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone()
    )
    batch = collate(example_set([[A, END]]), rows_of([0]))
    copy = batch.pinned()
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert [id(one) for one in pinned] == [id(one) for one in tensors]
    assert all(
        torch.equal(value, getattr(copy, name)) and value is not getattr(copy, name)
        for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
    )  # fmt: skip
    assert copy.segment_lengths == batch.segment_lengths
