"""Lengths of real functions, arrays resampled from them, and measures of a packing."""

import argparse
import json
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.text.tokenization import ExampleSet

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """Rows as the lengths of their examples; row r holds lengths[starts[r]:starts[r + 1]].

    Attributes:
        ids: The examples themselves; None for packers that do not return them.
    """

    lengths: Ints
    starts: Ints
    ids: Ints | None = None


def length_parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """--data with --tokenizer, or --lengths, or drawn lengths; --quick and --json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="tar archive of jsonl files with a field `code`")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json for --data")
    parser.add_argument("--lengths", type=Path, help="text file, one length a line")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


def read_lengths(given: argparse.Namespace) -> tuple[Ints, str]:
    """Tokens of each function, its end token included, and where they come from."""
    if given.lengths:
        return np.loadtxt(given.lengths, dtype=np.int64, ndmin=1), given.lengths.name
    if given.data:
        if not given.tokenizer:
            raise ValueError("--data needs --tokenizer TOKENIZER.json")
        codes = read_codes(given.data)
        return tokenized_lengths(
            codes, given.tokenizer
        ), f"{len(codes)} functions, {given.data.name}"
    drawn = np.random.default_rng(0).lognormal(np.log(266), 1.0, 1334)
    return drawn.clip(8, 4313).astype(np.int64), "drawn: lognormal, median 266"


def read_codes(archive: Path) -> list[str]:
    """The field `code` of every line of every jsonl file in a tar archive."""
    codes: list[str] = []
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            stream = tar.extractfile(member) if member.name.endswith(".jsonl") else None
            codes += [json.loads(line)["code"] for line in stream or ()]
    return codes


def tokenized_lengths(codes: list[str], tokenizer: Path) -> Ints:
    """Tokens of each code, an end token included."""
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(str(tokenizer)).encode_batch_fast(codes, add_special_tokens=False)
    return np.array([len(encoding) + 1 for encoding in encoded], dtype=np.int64)


def resampled(lengths: Ints, size: int, longest: int, seed: int = 0) -> Ints:
    """As many lengths drawn again with 10% jitter; those above `longest` are dropped."""
    rng = np.random.default_rng(seed)
    drawn = lengths[rng.integers(len(lengths), size=size)] * rng.normal(1, 0.1, size)
    rounded = np.maximum(1, np.rint(drawn)).astype(np.int64)
    return rounded[rounded <= longest]


def random_examples(lengths: Ints, vocabulary: int) -> ExampleSet:
    """Functions of the given lengths, with random tokens."""
    count, ones = len(lengths), np.ones(len(lengths))
    tokens = np.random.default_rng(0).integers(0, vocabulary, int(lengths.sum()))
    return ExampleSet(
        tokens=tokens.astype(np.int32),
        starts=np.append(0, np.cumsum(lengths)),
        record_E=np.arange(count),
        label_E=np.zeros(count, np.int8),
        share_E=ones,
        weight_E=ones.astype(np.float32),
        num_records=count,
    )


def lower_bound(lengths: Ints, capacity: int) -> int:
    """Martello and Toth's L2 (1990): no packing takes fewer rows.

    For each a <= C/2: examples above C - a are alone in a row; those above C/2 take a row each,
    whose space only takes examples of a to C/2.
    """
    count = np.bincount(lengths, minlength=capacity + 1)
    below = np.append(0, np.cumsum(count))  # examples shorter than l, for l = 0 .. C + 1
    tokens = np.append(0, np.cumsum(count * np.arange(capacity + 1)))
    a, half = np.arange(capacity // 2 + 1), capacity // 2 + 1
    alone = below[-1] - below[capacity - a + 1]
    large = below[capacity - a + 1] - below[half]
    space = large * capacity - (tokens[capacity - a + 1] - tokens[half])
    small = tokens[half] - tokens[a]
    return int((alone + large + np.maximum(0, -((space - small) // capacity))).max())


def lag1(packed: Packed) -> float:
    """Autocorrelation of the mean lengths of successive rows; random rows have none."""
    sizes = np.diff(packed.starts)
    means = np.add.reduceat(packed.lengths, packed.starts[:-1]) / sizes
    return float(np.corrcoef(means[:-1], means[1:])[0, 1])


def repeated_pairs(first: Packed, second: Packed) -> float:
    """Share of the pairs in a row of the first packing that share a row in the second, too."""
    one, two = _pairs(first), _pairs(second)
    return len(np.intersect1d(one, two, assume_unique=True)) / max(1, len(one))


def _pairs(packed: Packed) -> Ints:
    """Every pair of examples of a row as one number."""
    assert packed.ids is not None
    row = np.repeat(np.arange(len(packed.starts) - 1), np.diff(packed.starts))
    pairs = [np.zeros(0, np.int64)]
    for distance in range(1, int(np.diff(packed.starts).max())):
        together = row[:-distance] == row[distance:]
        one, two = packed.ids[:-distance][together], packed.ids[distance:][together]
        pairs.append(np.minimum(one, two) * len(packed.ids) + np.maximum(one, two))
    return np.concatenate(pairs)


def cpu_seconds(call: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Median CPU seconds of a call, and its last result."""
    seconds, result = [], None
    for _ in range(repeats):
        result = None  # otherwise two results of ten million examples are in memory
        started = time.process_time()
        result = call()
        seconds.append(time.process_time() - started)
    return float(np.median(seconds)), result


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most memory that Python and numpy held during a call, with its result."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
