"""A batch of language reads the state before every target, and no other."""

import numpy as np
import pytest
from example_sets import language_set
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import batch as batch_module
from data.batches.batch import collate
from data.batches.packing import pack
from data.text import tokenization
from data.text.tokenization import ExampleSet

A, B, C, D, E, END = 11, 12, 13, 14, 15, 99


def random_language(num_examples: int, seed: int) -> ExampleSet:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 21, num_examples)
    pieces = [generator.integers(1, 50, n).tolist() for n in lengths]
    return language_set(pieces, [generator.integers(0, 2, n).tolist() for n in lengths])


def rows_of(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def test_the_row_of_the_docstring_is_read_before_its_supervised_tokens(monkeypatch):
    monkeypatch.setattr(batch_module, "_WIDTH_MULTIPLE", 9)
    examples = language_set([[A, B, C, END], [D, E, END]], [[0, 1, 0, 1], [0, 1, 0]])
    batch = collate(examples, rows_of([0, 1]))
    assert batch.read_S.tolist() == [0, 2, 4]
    assert batch.labels_S.tolist() == [B, END, E]
    assert batch.example_S.tolist() == [0, 0, 1]
    assert (batch.count, batch.num_tokens) == (3.0, 7)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_targets_are_those_of_a_loop_over_tokens(num_examples, num_rows, isolate, seed):
    examples = random_language(num_examples, seed)
    packed = pack(examples.lengths, 20, np.random.default_rng(seed))
    rows = [packed.row(index) for index in range(min(num_rows, len(packed)))]
    batch = collate(examples, rows, isolate=isolate)
    expected = []
    for row, members in enumerate(rows):
        column = 0
        for example in members.tolist():
            start, end = examples.starts[example : example + 2].tolist()
            for place in range(1, end - start):
                if examples.supervised[start + place]:
                    token = int(examples.tokens[start + place])
                    expected.append((row, column + place - 1, token, example))
            column += end - start
    found = zip(
        batch.row_S.tolist(), batch.read_S.tolist(), batch.labels_S.tolist(),
        batch.example_S.tolist(), strict=True,
    )  # fmt: skip
    assert list(found) == expected
    assert batch.count == len(expected)


def test_without_isolation_a_row_is_one_segment_with_positions_that_run_on():
    examples = language_set([[A, B, C], [D, E]], [[1, 1, 1], [1, 1]])
    batch = collate(examples, rows_of([0, 1], [1], [0]), isolate=False)
    assert batch.position_ids_BT[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.segment_ids_BT.tolist() == [
        [0] * 5 + [1] * 3, [0] * 2 + [1] * 6, [0] * 3 + [1] * 5
    ]  # fmt: skip
    assert batch.segment_lengths == (5, 3, 2, 6, 3, 5)
    assert batch.labels_S.tolist() == [B, C, E, E, B, C]  # no first token of an example


def test_the_padding_of_a_batch_without_rows_is_never_a_target():
    batch = collate(random_language(5, 0), [])
    assert (len(batch.labels_S), batch.count) == (0, 0.0)


def test_78_an_end_token_with_the_id_of_the_padding_stays_a_target():
    """Tokenizers without a pad token use the end token; the mask goes by place, never by id."""
    end = 0  # what `collate` pads with
    batch = collate(
        language_set([[A, B, end], [D, E, A, B, end]], [[0, 1, 1], [1] * 5]), rows_of([0], [1])
    )
    assert batch.input_ids_BT.tolist() == [[A, B, end, 0, 0, 0, 0, 0], [D, E, A, B, end, 0, 0, 0]]
    assert batch.labels_S.tolist() == [B, end, E, A, B, end]  # both real ends, no padding
    assert batch.segment_ids_BT.tolist() == [[0] * 3 + [1] * 5, [0] * 5 + [1] * 3]


def test_a_subset_keeps_its_targets():
    examples = random_language(12, 3)
    chosen = np.array([7, 2])
    subset = examples.subset(chosen)
    assert subset.count_E.tolist() == examples.count_E[chosen].tolist()
    assert subset.starts.tolist() == [0, *np.cumsum(examples.lengths[chosen])]
    for place, example in enumerate(chosen):
        of_subset = subset.tokens[subset.starts[place] : subset.starts[place + 1]]
        start, end = examples.starts[example : example + 2]
        assert of_subset.tolist() == examples.tokens[start:end].tolist()
    assert examples.count_E.sum() > 0


def test_counting_by_blocks_is_counting(monkeypatch):
    examples = random_language(23, 1)
    whole = tokenization.targets_of(examples.supervised, examples.starts)
    monkeypatch.setattr(tokenization, "_BLOCK", 5)
    by_blocks = tokenization.targets_of(examples.supervised, examples.starts)
    assert by_blocks.tolist() == whole.tolist()
    naive = [
        int(examples.supervised[start + 1 : end].sum())
        for start, end in zip(examples.starts[:-1], examples.starts[1:], strict=True)
    ]
    assert whole.tolist() == naive


@pytest.mark.parametrize("mask", [[0, 0, 0], [1, 0, 0]])
def test_45_an_example_without_a_token_to_predict_counts_nothing(mask):
    assert language_set([[A, B, C]], [mask]).count_E.tolist() == [0.0]
