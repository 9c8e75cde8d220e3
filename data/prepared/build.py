"""Files -> the splits of a cache entry: read, dealt, encoded and written in one pass."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.prepared.cache import RECORDS, SplitWriter
from data.prepared.kinds import HELD_OUT, LANGUAGE, Building, Kind, Source
from data.prepared.splits import collapsed_digest, compare_splits
from data.prepared.table import RecordTable
from data.records import Document
from data.text.chat import own_template
from data.text.tokenization import Pieces
from data.text.tokenizer import CodeTokenizer

_CHUNK = 1024  # records of a chunk, of which two are in memory
_CHUNK_CHARACTERS = 1 << 24  # a chunk ends earlier when it holds this much text

Progress = Callable[[str, int, int], None]  # split, records and tokens so far


def build_splits(
    folder: Path,
    config: DataConfig,
    sources: Mapping[str, Source],
    tokenizer: CodeTokenizer,
    kind: Kind,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write every split under `folder`.

    Args:
        folder: Exists.
        config: How records are read and encoded.
        sources: Files of every split.
        tokenizer: Encodes the records and ends each example.
        kind: Functions or language records.
        progress: Called after every chunk.

    Returns:
        Facts about the splits and what they share.

    Raises:
        DataError: A row cannot be used, or a split has no record left.
    """
    keys, facts = {}, {}
    with _parallel_tokenizer():
        for name, source in sources.items():
            building = Building(name, folder / name, source, config, tokenizer)
            _write_split(building, kind, progress)
            facts[name] = kind.facts(building) | building.rows.to_json()
            keys[name] = building.keys
    tables = {name: RecordTable(folder / name / RECORDS, kind.stored) for name in sources}
    return {"splits": facts, "sharing": asdict(compare_splits(tables, keys))}


def _write_split(building: Building, kind: Kind, progress: Progress | None) -> None:
    config, tokenizer = building.config, building.tokenizer
    # a chat template is timed by a signal, which only the main thread can receive
    is_timed = kind is LANGUAGE and own_template(tokenizer.path.parent)[0] is not None
    encoded = _encoded_here if is_timed else _encoded_beside

    def encode(chunk: Sequence[Any]) -> Pieces:
        return kind.encode(chunk, tokenizer, config)

    with SplitWriter(building.folder, tokenizer.vocab_size, kind.stored) as writer:
        for path in building.source.paths:
            building.begins_file = True
            for chunk, pieces in encoded(_chunks(_records(path, building, kind)), encode):
                for message in pieces.refused.values():
                    building.rows.bad(message, config.max_bad_rows)
                kept = [r for n, r in enumerate(chunk) if n not in pieces.refused]
                writer.append(kept, pieces)
                building.keys.append([record.text for record in kept])
                kind.add(building, kept, pieces)
                if progress is not None:
                    progress(building.name, writer.num_records, writer.num_tokens)


def _records(path: Path, building: Building, kind: Kind) -> Iterator[Any]:
    """The records of a file that belong to a split."""
    name, held_out = building.name, building.source.held_out
    part, called = "train" if held_out else name, building.source.name_of(path)
    records = kind.read(path, part, building.config, building.rows, called)
    if not held_out:
        return records
    return (record for record in records if part_of(_question(record), held_out) == name)


def part_of(text: str, held_out: Sequence[str]) -> str:
    """Choose the split by a hash of the question: equal questions go to the same split."""
    place = int.from_bytes(collapsed_digest(text), "little") / 2**64
    for name in held_out:
        if place < HELD_OUT[name]:
            return name
        place -= HELD_OUT[name]
    return "train"


def _question(record: Any) -> str:
    """Everything before the first answer, or a whole document."""
    if isinstance(record, Document):
        return record.text
    first = next(n for n, turn in enumerate(record.turns) if turn.role == "assistant")
    return "\n".join(turn.content for turn in record.turns[:first])


def _encoded_here(
    chunks: Iterable[Sequence[Any]], encode: Callable[[Sequence[Any]], Pieces]
) -> Iterator[tuple[Sequence[Any], Pieces]]:
    """Chunks of records with their tokens."""
    return ((chunk, encode(chunk)) for chunk in chunks)


def _encoded_beside(
    chunks: Iterable[Sequence[Any]], encode: Callable[[Sequence[Any]], Pieces]
) -> Iterator[tuple[Sequence[Any], Pieces]]:
    """Chunks of records with their tokens; encoding releases the GIL and runs beside reading."""
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[Sequence[Any], Future[Pieces]] | None = None
        for chunk in chunks:
            future = pool.submit(encode, chunk)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = (chunk, future)
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _chunks(records: Iterator[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    num_characters = 0
    for record in records:
        chunk.append(record)
        num_characters += len(record.text)
        if len(chunk) == _CHUNK or num_characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


@contextmanager
def _parallel_tokenizer() -> Iterator[None]:
    """Run the tokenizer on all cores: no other process of ours works while data is built."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
