"""Files -> the splits of a cache entry: read, dealt, encoded and written in one pass."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.config import DataConfig
from data.prepared.cache import RECORDS, SplitWriter
from data.prepared.division import PARTS, WINDOWS, Examined, divide, sampled, window
from data.prepared.kinds import FUNCTIONS, LANGUAGE, Building, Kind
from data.prepared.sources import Source
from data.prepared.splits import compare_splits, repeated_ids
from data.prepared.table import RecordTable
from data.readers import ReadFacts
from data.text import terminal
from data.text.labels import Classes
from data.text.own_template import own_template
from data.text.tokenization import Pieces
from data.text.tokenizer import CodeTokenizer

_CHUNK = 1024  # records of a chunk, of which two are in memory
_CHUNK_CHARACTERS = 1 << 24  # a chunk ends earlier when it holds this much text


def build_splits(
    folder: Path,
    config: DataConfig,
    sources: Mapping[str, Source],
    tokenizer: CodeTokenizer,
    kind: Kind,
    classes: Classes | None = None,
) -> dict[str, Any]:
    """Write every split under `folder`.

    Args:
        folder: Exists.
        config: How records are read and encoded.
        sources: Files of every split.
        tokenizer: Encodes the records and ends each example.
        kind: Functions or language records.
        classes: Those of an earlier run; None: those of train.

    Returns:
        Facts about the splits and what they share.

    Raises:
        DataError: A row cannot be used, or a split has no record left.
    """
    part_N, division = (
        _divided(sources["train"], config, kind) if "train" in sources else (None, {})
    )
    splits = {
        name: Building(name, folder / name, source, config, tokenizer)
        for name, source in sources.items()
    }
    with _parallel_tokenizer():
        for building in splits.values():
            building.part_N = part_N if building.source.held_out else None
            if config.sample is not None:
                building.is_sampled_N = _sampled(building, kind, config.sample)
            _write_split(building, kind)
    of_all = kind.settle(splits, classes)
    facts = {
        name: kind.facts(each) | each.rows.to_json() | {"path_records": each.path_records}
        for name, each in splits.items()
    }
    tables = {name: RecordTable(folder / name / RECORDS, kind.stored) for name in sources}
    with terminal.step("comparing splits"):
        sharing = asdict(compare_splits(tables, {name: each.keys for name, each in splits.items()}))
    return {"splits": facts, "sharing": sharing, "division": division, **of_all}


def _divided(
    source: Source, config: DataConfig, kind: Kind
) -> tuple[npt.NDArray[np.int8] | None, dict[str, Any]]:
    """The part of each record of a source that several splits share, and how it was dealt."""
    if not source.held_out:
        return None, {}
    rows = ReadFacts()
    files = (kind.read(path, "train", config, rows, source.name_of(path)) for path in source.paths)
    return divide(_examined(Examined(config, source.held_out), files, rows))


def _sampled(building: Building, kind: Kind, num: int) -> npt.NDArray[np.bool_]:
    """Which records of a split a quick try takes."""
    reader = replace(building, rows=ReadFacts())
    files = (_records(path, reader, kind) for path in building.source.paths)
    examined = Examined(building.config, {}, shingles=None)
    return sampled(_examined(examined, files, reader.rows).keys, num)


def _examined(examined: Examined, files: Iterable[Iterator[Any]], rows: ReadFacts) -> Examined:
    """What the records of files say, their labels numbered in an order of names alone."""
    with terminal.step("looking for records that belong together") as shown:
        for records in files:
            for chunk in _chunks(records):
                examined.add(chunk)
                shown.advance(len(chunk))
    examined.keys.relabel(rows.labels.ranks)
    return examined


def _write_split(building: Building, kind: Kind) -> None:
    config, tokenizer = building.config, building.tokenizer
    # a chat template is timed by a signal, which only the main thread can receive
    is_timed = kind is LANGUAGE and own_template(tokenizer.path.parent)[0] is not None
    encoded = _encoded_here if is_timed else _encoded_beside

    def encode(chunk: Sequence[Any]) -> Pieces:
        return kind.encode(chunk, tokenizer, config)

    with (
        SplitWriter(building.folder, tokenizer.vocab_size, kind.stored) as writer,
        terminal.step(f"prepare {building.name}") as shown,
    ):
        for path in building.source.paths:
            building.begins_file, num_before = True, writer.num_records
            for chunk, pieces in encoded(_chunks(_records(path, building, kind)), encode):
                for message in pieces.refused.values():
                    building.rows.bad(message, config.max_bad_rows)
                kept = [r for n, r in enumerate(chunk) if n not in pieces.refused]
                writer.append(kept, pieces)
                building.keys.append([record.text for record in kept])
                kind.add(building, kept, pieces)
                shown.at(writer.num_records, f"{writer.num_tokens:,} tokens")
            building.path_records.append(writer.num_records - num_before)
    if kind is FUNCTIONS:
        table = RecordTable(building.folder / RECORDS, kind.stored)
        if num := repeated_ids(table, building.keys):
            building.rows.warn(f"{num:,} functions are in several files, with the same id")


def _records(path: Path, building: Building, kind: Kind) -> Iterator[Any]:
    """The records of a file that belong to a split, or to a sample of it."""
    for record in _own_records(path, building, kind):
        is_wanted = building.is_sampled_N is None or building.is_sampled_N[building.num_own]
        building.num_own += 1
        if is_wanted:
            yield record


def _own_records(path: Path, building: Building, kind: Kind) -> Iterator[Any]:
    name, held_out, part_N = building.name, building.source.held_out, building.part_N
    called = building.source.name_of(path)
    read = "train" if held_out else name
    for record in kind.read(path, read, building.config, building.rows, called):
        if part_N is None:
            yield record
            continue
        part = part_N[building.num_read]
        building.num_read += 1
        if part == PARTS.index(name):
            yield record
        elif part == WINDOWS and (text := window(record.text, name, held_out)).strip():
            yield replace(record, text=text)


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
