"""Files -> checked, tokenised splits on disk, and the facts about them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from data.audit import collapse_damage
from data.cache import (
    RECORDS,
    SplitWriter,
    cached,
    code_lengths,
    default_root,
    open_split,
    read_facts,
)
from data.config import DataConfig
from data.errors import DataError
from data.readers import SPLITS, ReadFacts, read_records, source_digest, split_path
from data.records import CodeSample
from data.splits import SplitFacts, SplitKeys, compare_splits, refuse_leaks, refuse_one_class
from data.table import RecordTable
from data.tokenization import (
    CodeTokenizer,
    ExampleSet,
    Pieces,
    TokenFacts,
    encode_functions,
    token_facts,
)

_CHUNK = 1024  # functions in memory at a time, twice,
_CHUNK_CHARACTERS = 1 << 24  # or as many as hold this much code
# What decides the rows of a run but not the content of the cache.
_NOT_IN_KEY = {
    "path", "train", "valid", "test", "tokenizer", "cache_dir", "packing", "packing_window",
    "sampling", "leak_groups", "allow_leaks",
}  # fmt: skip

Progress = Callable[[str, int, int], None]  # split, functions and tokens so far


@dataclass(frozen=True)
class Split:
    """One split, read and tokenised.

    Attributes:
        samples: Its records, on disk.
        examples: Their tokens, on disk.
        tokens: What tokenisation did.
        folder: Where both are.
    """

    samples: RecordTable
    examples: ExampleSet
    tokens: TokenFacts
    folder: Path

    @cached_property
    def targets(self) -> list[int]:
        """Target of every function, dropped ones included."""
        targets: list[int] = self.samples.targets.tolist()
        return targets

    @property
    def code_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every function's whole code; -1 where it is too long to be tokenised."""
        return code_lengths(self.folder)


@dataclass(frozen=True)
class Prepared:
    """A dataset ready for training.

    Attributes:
        splits: By name.
        tokenizer: What encoded them.
        facts: The content of data.json: digests, counts, what was dropped, leaks.
    """

    splits: dict[str, Split]
    tokenizer: CodeTokenizer
    facts: dict[str, Any]

    @property
    def sharing(self) -> SplitFacts:
        """What the splits share and repeat."""
        return SplitFacts(**self.facts["sharing"])

    @property
    def leaks(self) -> dict[str, dict[str, int]]:
        """What stands in two splits and must not, by kind and pair of splits."""
        return self.sharing.leaks(self.facts["leak_groups"])

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of everything that decides the rows."""
        digests: dict[str, str] = self.facts["sha256"]
        return digests


def prepare(
    config: DataConfig,
    tokenizer_folder: Path,
    group_weights: Mapping[str, float],
    *,
    class_weights: str = "none",
    progress: Progress | None = None,
) -> Prepared:
    """The three splits, read, checked and tokenised, or mapped from disk where that was done.

    Args:
        config: Where they are and how they are read.
        tokenizer_folder: Holds tokenizer.json.
        group_weights: Loss weight by status.
        class_weights: "balanced" weighs training functions by the inverse share of their class.
        progress: Told after every chunk when something has to be built.

    Raises:
        DataError: A file, a row or a combination of splits that cannot be used.
    """
    prepared = open_splits(config, tokenizer_folder, progress)
    refuse_leaks(prepared.sharing, config.leak_groups, config.allow_leaks)
    train = prepared.splits["train"]
    refuse_one_class(train.samples.targets, "train")
    kept = train.examples.label_E
    refuse_one_class(kept, "train, without the functions data.long_functions=drop takes away")
    refuse_unknown_groups(group_weights, train.samples)
    weight_N = loss_weights(train, group_weights, class_weights)
    examples = replace(train.examples, weight_E=weight_N[train.examples.record_E])
    splits = prepared.splits | {"train": replace(train, examples=examples)}
    return replace(prepared, splits=splits)


def open_splits(
    config: DataConfig, tokenizer_folder: Path, progress: Progress | None = None
) -> Prepared:
    """The three splits, read and tokenised, as they are: also what training refuses.

    Raises:
        DataError: A file or a row that cannot be read.
    """
    paths = {name: split_path(config, name) for name in SPLITS}
    prepared = _open(config, paths, tokenizer_folder, progress)
    asked = {"leak_groups": config.leak_groups, "leaks_allowed": config.allow_leaks}
    return replace(prepared, facts=prepared.facts | asked)


def read_split(
    path: Path, name: str, config: DataConfig, tokenizer: CodeTokenizer
) -> tuple[Split, dict[str, Any]]:
    """One file alone, for an evaluation after training."""
    prepared = _open(config, {name: path}, tokenizer.path.parent, None)
    facts = prepared.facts["splits"][name] | {"sha256": prepared.digests[name]}
    return prepared.splits[name], facts


def loss_weights(
    train: Split, group_weights: Mapping[str, float], class_weights: str
) -> npt.NDArray[np.float32]:
    """Weight of every training function: that of its group times that of its class.

    "balanced" gives class c the weight N / (2 N_c) of the N functions that are trained on (King and
    Zeng 2001), whose mean over functions is 1.
    """
    weight_N = np.ones(len(train.samples), dtype=np.float32)
    if group_weights:
        statuses = train.samples.column("status").combine_chunks().dictionary_encode()
        of_status = [group_weights.get(s, 1.0) for s in statuses.dictionary.to_pylist()]
        weight_N = np.array(of_status, dtype=np.float32)[statuses.indices.to_numpy()]
    if class_weights == "balanced":
        kept_C = np.bincount(train.samples.targets[np.unique(train.examples.record_E)], minlength=2)
        weight_N = (
            weight_N * (kept_C.sum() / (2 * kept_C)).astype(np.float32)[train.samples.targets]
        )
    return weight_N


def refuse_unknown_groups(weights: Mapping[str, float], train: RecordTable) -> None:
    """A weight for a status that no function has is a slip of the pen.

    Raises:
        DataError: Naming it and the statuses there are.
    """
    if not weights:
        return
    present = set(train.column("status").unique().to_pylist())
    unknown = sorted(weights.keys() - present)
    if unknown:
        raise DataError(
            f"loss.group_weights: no training function has status {unknown}; there are"
            f" {sorted(present)}"
        )


def _open(
    config: DataConfig,
    paths: Mapping[str, Path],
    tokenizer_folder: Path,
    progress: Progress | None,
) -> Prepared:
    """Splits from the cache, which is filled first where it does not hold them."""
    tokenizer = CodeTokenizer(tokenizer_folder, config.end_token)
    by_path = {path: source_digest(path) for path in {tokenizer.path, *paths.values()}}
    digests = {"tokenizer": by_path[tokenizer.path]} | {n: by_path[p] for n, p in paths.items()}
    content = {
        "digests": digests,
        "names": {name: path.name for name, path in paths.items()},  # they stand in every origin
        "end_token": tokenizer.end_token,
        "config": config.model_dump(mode="json", exclude=_NOT_IN_KEY),
        "code": _code_digest(),
        "versions": {name: version(name) for name in ("tokenizers", "pyarrow")},
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    root = Path(config.cache_dir) if config.cache_dir else default_root()

    def build(folder: Path) -> dict[str, Any]:
        return _build(folder, config, paths, tokenizer, progress) | {
            "sha256": digests,
            "end_token": tokenizer.end_token,
            "normalize_whitespace": config.normalize_whitespace,
            "seq_length": config.seq_length,
        }

    entry = cached(root, key, build)
    facts = read_facts(entry)
    splits = {}
    for name in paths:
        samples, examples = open_split(entry / name, tokenizer.vocab_size)
        tokens = TokenFacts(**facts["splits"][name]["tokens"])
        splits[name] = Split(samples, examples, tokens, entry / name)
    return Prepared(splits, tokenizer, facts | {"cache": str(entry)})


def _build(
    folder: Path,
    config: DataConfig,
    paths: Mapping[str, Path],
    tokenizer: CodeTokenizer,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write every split under `folder`; returns the facts."""
    keys, facts = {}, {}
    with _parallel_tokenizer():
        for name, path in paths.items():
            keys[name] = SplitKeys()
            facts[name] = _build_split(folder, name, path, config, tokenizer, keys[name], progress)
    tables = {name: RecordTable(folder / name / RECORDS) for name in paths}
    return {"splits": facts, "sharing": compare_splits(tables, keys).to_json()}


def _build_split(
    folder: Path,
    name: str,
    path: Path,
    config: DataConfig,
    tokenizer: CodeTokenizer,
    keys: SplitKeys,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write one split, the next functions being read while the last ones are encoded."""
    rows = ReadFacts()
    num_functions = 0
    with SplitWriter(folder / name, tokenizer.vocab_size) as writer:
        records = read_records(path, name, config, rows)
        for samples, pieces in _encoded(records, tokenizer, config):
            writer.append(samples, pieces)
            keys.append(samples)
            num_functions += len(samples)
            if progress is not None:
                progress(name, num_functions, writer.num_tokens)
    if not num_functions:
        raise_empty(name, rows)
    tokens = token_facts(code_lengths(folder / name), keys.target_N, writer.num_examples, config)
    if not tokens.num_examples:
        raise_empty(name, rows, tokens)
    if config.normalize_whitespace == "collapse":
        warning = collapse_damage(RecordTable(folder / name / RECORDS)).warning()
        rows.warnings += [warning] if warning else []
    return {"tokens": tokens.to_json(), "cwe": keys.cwe_table(), **rows.to_json()}


def _encoded(
    records: Iterator[CodeSample], tokenizer: CodeTokenizer, config: DataConfig
) -> Iterator[tuple[Sequence[CodeSample], Pieces]]:
    """Chunks of records with their tokens; encoding runs beside reading, as it leaves the GIL."""
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[Sequence[CodeSample], Future[Pieces]] | None = None
        for samples in _chunks(records):
            codes = [sample.code for sample in samples]
            future = pool.submit(encode_functions, codes, tokenizer, config)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = (samples, future)
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _chunks(records: Iterator[CodeSample]) -> Iterator[Sequence[CodeSample]]:
    chunk: list[CodeSample] = []
    num_characters = 0
    for sample in records:
        chunk.append(sample)
        num_characters += len(sample.code)
        if len(chunk) == _CHUNK or num_characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


@contextmanager
def _parallel_tokenizer() -> Iterator[None]:
    """The tokenizer on all cores: while data is built no other process of ours works."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _code_digest() -> str:
    """Of the sources that read and tokenise: another version of them builds anew."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def raise_empty(name: str, rows: ReadFacts, tokens: TokenFacts | None = None) -> NoReturn:
    """Every row was passed over.

    Raises:
        DataError: Always, with the count of each reason.
    """
    reasons = f"{rows.num_empty} had no code, {rows.num_bad} were bad"
    if rows.num_identical:
        reasons += f", {rows.num_identical} pairs had a fix that changed nothing"
    if tokens is not None:
        reasons += (
            f", {tokens.num_oversized} were above data.max_function_bytes, {tokens.num_long} were"
            " dropped as longer than data.seq_length; raise it, or set data.long_functions to"
            " truncate or window"
        )
    raise DataError(f"{name}: no function left of {rows.num_rows} rows: {reasons}")
