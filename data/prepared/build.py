"""Files -> the splits of a cache entry: read, told apart, encoded and written as they come."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

from data.config import DataConfig
from data.errors import DataError
from data.prepared.cache import RECORDS, SplitWriter, code_lengths, open_split
from data.prepared.splits import SplitKeys, compare_splits, text_digest
from data.prepared.table import RecordTable
from data.readers import ReadFacts, read_language, read_records
from data.records import CodeSample, Conversation, Document, RecordSource
from data.text.language import LanguageFacts, encode_language, record_text, supervised_facts
from data.text.tokenization import Pieces, TokenFacts, encode_functions, token_facts
from data.text.tokenizer import CodeTokenizer
from data.text.whitespace import collapse_damage

_CHUNK = 1024  # records in memory at a time, twice,
_CHUNK_CHARACTERS = 1 << 24  # or as many as hold this much text
HELD_OUT = {"valid": 0.05, "test": 0.05}
"""Share of language records that a split gets of train's files where it has none of its own."""

Progress = Callable[[str, int, int], None]  # split, records and tokens so far
LanguageRecord: TypeAlias = Conversation | Document


@dataclass(frozen=True)
class Source:
    """Where a split is read from.

    Attributes:
        paths: Its files, in order; one for functions.
        held_out: Splits that get a part of these files; the split itself is one of them, or gets
            what they leave.
    """

    paths: tuple[Path, ...]
    held_out: tuple[str, ...] = ()


@dataclass
class FileFacts:
    """What a file gave to a split of language records."""

    name: str
    num_records: int = 0
    num_examples: int = 0
    num_tokens: int = 0


@dataclass
class _Written:
    """What accumulates while a split is written."""

    rows: ReadFacts = field(default_factory=ReadFacts)
    keys: SplitKeys = field(default_factory=SplitKeys)
    files: list[FileFacts] = field(default_factory=list)
    num_records: int = 0
    kinds: set[str] = field(default_factory=set)
    num_documents: int = 0
    num_unsupervised: int = 0
    learns_end: bool = False
    num_control: int = 0
    control_token: str = ""


def build_splits(
    folder: Path,
    config: DataConfig,
    sources: Mapping[str, Source],
    tokenizer: CodeTokenizer,
    kind: type[CodeSample] | type[RecordSource],
    progress: Progress | None,
) -> dict[str, Any]:
    """Write every split under `folder`.

    Args:
        folder: Exists.
        config: How they are read and encoded.
        sources: Of every split.
        tokenizer: Encodes and ends.
        kind: CodeSample for functions, RecordSource for language.
        progress: Told after every chunk.

    Returns:
        The facts of the splits and what they share.

    Raises:
        DataError: A row that cannot be used, or a split of which nothing is left.
    """
    build = _build_functions if kind is CodeSample else _build_language
    keys, facts = {}, {}
    with _parallel_tokenizer():
        for name, source in sources.items():
            written = _Written()
            facts[name] = build(folder / name, name, source, config, tokenizer, written, progress)
            facts[name] |= written.rows.to_json()
            keys[name] = written.keys
    tables = {name: RecordTable(folder / name / RECORDS, kind) for name in sources}
    return {"splits": facts, "sharing": compare_splits(tables, keys).to_json()}


def _build_functions(
    folder: Path,
    name: str,
    source: Source,
    config: DataConfig,
    tokenizer: CodeTokenizer,
    written: _Written,
    progress: Progress | None,
) -> dict[str, Any]:
    def encode(samples: Sequence[CodeSample]) -> Pieces:
        return encode_functions([sample.code for sample in samples], tokenizer, config)

    rows, keys = written.rows, written.keys
    with SplitWriter(folder, tokenizer.vocab_size, CodeSample) as writer:
        records = read_records(source.paths[0], name, config, rows)
        for samples, pieces in _encoded(_chunks(records, lambda s: len(s.code)), encode):
            writer.append(samples, pieces)
            keys.append(samples)
            written.num_records += len(samples)
            if progress is not None:
                progress(name, written.num_records, writer.num_tokens)
    if not written.num_records:
        raise_empty(name, rows)
    tokens = token_facts(
        code_lengths(folder), keys.target_N, writer.num_examples, config, tokenizer.num_added
    )
    if not tokens.num_examples:
        raise_empty(name, rows, tokens)
    if config.normalize_whitespace == "collapse":
        warning = collapse_damage(RecordTable(folder / RECORDS, CodeSample)).warning()
        rows.warnings += [warning] if warning else []
    return {"tokens": tokens.to_json(), "cwe": keys.cwe_table()}


def _build_language(
    folder: Path,
    name: str,
    source: Source,
    config: DataConfig,
    tokenizer: CodeTokenizer,
    written: _Written,
    progress: Progress | None,
) -> dict[str, Any]:
    def encode(records: Sequence[LanguageRecord]) -> Pieces:
        return encode_language(records, tokenizer, config)

    end_id = tokenizer.end_id
    with SplitWriter(folder, tokenizer.vocab_size, RecordSource) as writer:
        for path in source.paths:
            split = "train" if source.held_out else name
            records = _of_split(read_language(path, split, config, written.rows), name, source)
            file: FileFacts | None = None
            for chunk, pieces in _encoded(_chunks(records, lambda r: len(record_text(r))), encode):
                for message in pieces.refused.values():
                    written.rows.bad(message, config.max_bad_rows)
                chunk = [r for n, r in enumerate(chunk) if n not in pieces.refused]
                file = _append(writer, chunk, pieces, written, file)
                written.learns_end |= bool(np.any(pieces.tokens[pieces.supervised] == end_id))
                if progress is not None:
                    progress(name, written.num_records, writer.num_tokens)
    if not written.num_records:
        raise_empty_language(name, source, written.rows)
    facts = _language_facts(folder, tokenizer.vocab_size, written, config)
    if not facts.num_targets:
        raise_empty_language(name, source, written.rows, facts)
    written.rows.warnings += facts.warnings
    if not written.learns_end:
        remedy = "set data.end_token to what the template closes an answer with"
        if facts.num_long:
            remedy = (
                f"data.long_functions={config.long_functions} cuts it off; take window, or {remedy}"
            )
        written.rows.warn(
            f"no target is the end token {tokenizer.end_token!r}, so the model does not learn to"
            f" stop: {remedy}"
        )
    if written.num_control:
        written.rows.warn(
            f"{written.num_control} records write a special token of the tokenizer in their own"
            f" text, the first one {written.control_token!r}: it acts as the control token; remove"
            " it where it is meant as text"
        )
    return {
        "tokens": facts.to_json(),
        "kinds": sorted(written.kinds),
        "files": [asdict(file) for file in written.files],
    }


def _append(
    writer: SplitWriter[RecordSource],
    chunk: Sequence[LanguageRecord],
    pieces: Pieces,
    written: _Written,
    file: FileFacts | None,
) -> FileFacts | None:
    """Write a chunk; the file its last record came from."""
    kept = [RecordSource(record.id, record.origin, record.source) for record in chunk]
    writer.append(kept, pieces)
    written.keys.append_texts([record_text(record) for record in chunk])
    written.num_records += len(chunk)
    written.num_documents += sum(isinstance(record, Document) for record in chunk)
    written.kinds |= {"text" if isinstance(r, Document) else r.kind for r in chunk}
    written.num_unsupervised += pieces.num_unsupervised
    written.num_control += len(pieces.control_tokens)
    if not written.control_token and pieces.control_tokens:
        written.control_token = pieces.control_tokens[0]
    examples_N = np.bincount(pieces.record_E, minlength=len(chunk))
    tokens_N = np.bincount(pieces.record_E, pieces.lengths_E, len(chunk))
    for record, examples, tokens in zip(chunk, examples_N, tokens_N, strict=True):
        if file is None or record.source != file.name:
            file = FileFacts(record.source)
            written.files.append(file)
        file.num_records += 1
        file.num_examples += int(examples)
        file.num_tokens += int(tokens)
    return file


def _language_facts(
    folder: Path, vocab_size: int, written: _Written, config: DataConfig
) -> LanguageFacts:
    lengths_N = code_lengths(folder)
    if not any(file.num_examples for file in written.files):
        nothing = np.zeros(0, np.int64)
        pieces = Pieces(
            nothing.astype(np.int32), nothing, nothing, lengths_N, nothing.astype(np.bool_),
            written.num_unsupervised,
        )  # fmt: skip
    else:
        _, examples = open_split(folder, vocab_size, RecordSource)
        pieces = Pieces(
            examples.tokens, examples.lengths, examples.record_E, lengths_N, examples.supervised,
            written.num_unsupervised,
        )  # fmt: skip
    return supervised_facts(pieces, config, written.num_documents)


def _of_split(
    records: Iterator[LanguageRecord], name: str, source: Source
) -> Iterator[LanguageRecord]:
    if not source.held_out:
        return records
    return (record for record in records if part_of(_asked(record), source.held_out) == name)


def part_of(text: str, held_out: Sequence[str]) -> str:
    """The split that a digest of what a record asks deals it to: equal questions to the same."""
    # Whitespace apart, as leaks are found.
    place = int.from_bytes(text_digest(" ".join(text.split())), "little") / 2**64
    for name in held_out:
        if place < HELD_OUT[name]:
            return name
        place -= HELD_OUT[name]
    return "train"


def _asked(record: LanguageRecord) -> str:
    """What comes before the first answer; all of a document."""
    if isinstance(record, Document):
        return record.text
    first = next(n for n, turn in enumerate(record.turns) if turn.role == "assistant")
    return "\n".join(turn.content for turn in record.turns[:first])


def _encoded(
    chunks: Iterable[Sequence[Any]], encode: Callable[[Sequence[Any]], Pieces]
) -> Iterator[tuple[Sequence[Any], Pieces]]:
    """Chunks of records with their tokens; encoding runs beside reading, as it leaves the GIL."""
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[Sequence[Any], Future[Pieces]] | None = None
        for chunk in chunks:
            future = pool.submit(encode, chunk)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = (chunk, future)
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _chunks(records: Iterator[Any], num_characters_of: Callable[[Any], int]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    num_characters = 0
    for record in records:
        chunk.append(record)
        num_characters += num_characters_of(record)
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


def raise_empty_language(
    name: str, source: Source, rows: ReadFacts, facts: LanguageFacts | None = None
) -> NoReturn:
    """No record is left of a split.

    Raises:
        DataError: Always, with the reason and the remedy.
    """
    if facts is not None:
        raise DataError(
            f"{name}: nothing to learn is left of {facts.num_records} records:"
            f" {facts.num_oversized} were above data.max_function_bytes, {facts.num_long} longer"
            f" than data.seq_length ({facts.policy}), {facts.num_unsupervised} pieces held no"
            " answer; raise data.seq_length, or set data.long_functions to window"
        )
    if source.held_out:
        raise DataError(
            f"{name}: none of {rows.num_rows} records of data.train fell to its held-out"
            f" {HELD_OUT.get(name, 1):.0%}; name a file of its own by data.{name}"
        )
    raise DataError(
        f"{name}: no record left of {rows.num_rows}: {rows.num_empty} were blank, {rows.num_bad}"
        " were bad"
    )
