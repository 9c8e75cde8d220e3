"""Splits made of nothing but tokens, for tests that need no tokenizer."""

from collections.abc import Sequence

import numpy as np

from data.tokenization import ExampleSet


def example_set(
    pieces: Sequence[Sequence[int]],
    records: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> ExampleSet:
    """One example a piece; pieces of one record are windows of one function."""
    record_E = np.array(range(len(pieces)) if records is None else records, dtype=np.int64)
    windows_E = np.array([(record_E == record).sum() for record in record_E], dtype=np.float64)
    return ExampleSet(
        tokens=np.array([token for piece in pieces for token in piece], dtype=np.int32),
        starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        record_E=record_E,
        label_E=np.array(record_E % 2 if labels is None else labels, dtype=np.int64),
        share_E=1.0 / windows_E,
        weight_E=np.array(np.ones(len(pieces)) if weights is None else weights, dtype=np.float64),
        num_records=len(set(record_E.tolist())),
    )


def random_examples(num_examples: int, longest: int, seed: int = 0) -> ExampleSet:
    """Examples of 1 to `longest` tokens, every function whole."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, num_examples)
    return example_set([[index + 1] * int(n) for index, n in enumerate(lengths)])
