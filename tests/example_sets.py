"""Splits in memory: made of nothing but tokens, or of a few functions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.config import DataConfig
from data.records import CodeSample
from data.text.tokenization import ExampleSet, TokenFacts, encode_functions, token_facts
from data.text.tokenizer import CodeTokenizer


def tokenized(
    samples: Sequence[CodeSample], tokenizer: CodeTokenizer, config: DataConfig
) -> tuple[ExampleSet, TokenFacts]:
    """Examples of a few functions and their facts, without a cache."""
    pieces = encode_functions([sample.code for sample in samples], tokenizer, config)
    targets = np.array([sample.target for sample in samples], dtype=np.int32)
    num_E = np.bincount(pieces.record_E, minlength=len(samples))[pieces.record_E]
    examples = ExampleSet(
        tokens=pieces.tokens,
        starts=np.concatenate([[0], np.cumsum(pieces.lengths_E)]),
        record_E=pieces.record_E,
        label_E=targets[pieces.record_E],
        share_E=1.0 / num_E,
        weight_E=np.ones(len(num_E), dtype=np.float32),
        num_records=len(samples),
    )
    facts = token_facts(pieces.code_lengths_N, targets, len(num_E), config, tokenizer.num_added)
    return examples, facts


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
        label_E=np.array(record_E % 2 if labels is None else labels, dtype=np.int32),
        share_E=1.0 / windows_E,
        weight_E=np.array(np.ones(len(pieces)) if weights is None else weights, dtype=np.float32),
        num_records=len(set(record_E.tolist())),
    )


def language_set(pieces: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]) -> ExampleSet:
    """One example a piece, with the mask of its targets."""
    supervised = np.array([value for mask in masks for value in mask], dtype=np.bool_)
    return replace(example_set(pieces), supervised=supervised)


def random_examples(num_examples: int, longest: int, seed: int = 0) -> ExampleSet:
    """Examples of 1 to `longest` tokens, every function whole."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, num_examples)
    return example_set([[index + 1] * int(n) for index, n in enumerate(lengths)])
