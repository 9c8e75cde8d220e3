"""Files, archives, folders and saved datasets -> CodeSample, streamed; faults have their place."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.config import DataConfig
from data.errors import DataError
from data.readers.archives import Member, tar_members, zip_members
from data.readers.columns import Columns, WantedColumns
from data.readers.folders import folder_samples, member_samples
from data.readers.formats import Rows, csv_rows, is_indented_object, json_rows, jsonl_rows
from data.readers.reading import BOM, ReadFacts, Reading, listed
from data.readers.rows import row_samples
from data.readers.sources import is_split_file, named_format
from data.readers.streams import decompressed, is_tar, is_zip
from data.readers.tables import dataset_rows, is_saved_dataset, parquet_rows
from data.records import CodeSample

SPLITS = ("train", "valid", "test")
_SNIFFED_BYTES = 1 << 12
_OPENINGS = {b"{": "jsonl", b"[": "json"}


def read_records(
    path: Path, split: str, config: DataConfig, facts: ReadFacts | None = None
) -> Iterator[CodeSample]:
    """Stream the functions of a split, in the order of the source.

    Args:
        path: What split_path found: a file of any format and compression, an archive, of which the
            member named after the split is read, a saved dataset, or a folder of label folders.
        split: "train", "valid" or "test".
        config: Format, field and label mapping, tolerance for bad rows.
        facts: Filled while reading.

    Raises:
        DataError: A source or a row that is not what the dataset promises, with file and line.
    """
    reading = Reading(path.name, config, facts if facts is not None else ReadFacts(), split)
    columns = Columns.of(config)
    if path.is_dir() and _folder_format(path, config) == "folder":
        yield from folder_samples(path, reading)
    elif path.is_dir():
        yield from row_samples(dataset_rows(path, reading, columns), columns, reading)
    elif config.format == "folder":
        yield from member_samples(_folder_archive(path, reading), split, reading)
    else:
        yield from row_samples(_file_rows(path, split, reading, columns), columns, reading)
    if not reading.facts.num_rows:
        raise DataError(
            f"{reading.name}: no rows; a split needs functions: one JSON object per line in jsonl,"
            " elements of the array in json, rows under the header in csv, files in folders"
        )


def _folder_format(path: Path, config: DataConfig) -> str:
    found = "datasets" if is_saved_dataset(path) and config.format != "folder" else "folder"
    if config.format not in ("auto", found):
        raise DataError(
            f"{path}: data.format={config.format}, but this is a folder"
            f"{' with a saved dataset' if found == 'datasets' else ''}; set data.format={found}"
        )
    return found


def _file_rows(path: Path, split: str, reading: Reading, columns: WantedColumns) -> Rows:
    if not path.is_file():  # a fifo would wait for ever
        raise DataError(f"{path}: must be a regular file, because it is read several times")
    if reading.config.format == "datasets":
        raise DataError(
            f"{path}: data.format=datasets, but this is a file; a dataset saved to disk is a folder"
            " with state.json (unpack it if it is in an archive)"
        )
    with path.open("rb") as raw:
        stream, members = opened(raw, reading)
        if members is None:
            yield from stream_rows(stream, path.name, reading, columns)
        else:
            yield from _member_rows(members, split, reading, columns)


def _folder_archive(path: Path, reading: Reading) -> Iterator[Member]:
    with path.open("rb") as raw:
        _, members = opened(raw, reading)
        if members is None:
            raise DataError(f"{path}: data.format=folder, but this is neither folder nor archive")
        yield from members


def opened(
    raw: io.BufferedReader, reading: Reading
) -> tuple[io.BufferedReader, Iterator[Member] | None]:
    """The decompressed content, and its members where it is an archive."""
    if is_zip(raw):
        return raw, zip_members(raw, reading)
    stream = decompressed(raw, reading)
    return stream, tar_members(stream, reading) if is_tar(stream) else None


def _member_rows(
    members: Iterable[Member], split: str, reading: Reading, columns: WantedColumns
) -> Rows:
    """Rows of the one member called <split>.<format>."""
    archive, seen, found = reading.name, [], ""
    for member in members:
        seen.append(member.name)
        del seen[100:]
        name = member.name.rpartition("/")[2]
        if not is_split_file(name, split):
            continue
        if found:
            raise DataError(f"{archive}: {found!r} and {member.name!r} both hold {split}; keep one")
        found = member.name
        reading.name = f"{archive}::{member.name}"
        with member.open() as stream:
            content = decompressed(stream, reading)
            if is_tar(content) or is_zip(content):
                raise DataError(f"{reading.name}: an archive within an archive; unpack the outer")
            yield from stream_rows(content, name, reading, columns)
    if not found:
        other = "; ".join(reading.facts.warnings)
        raise DataError(
            f"{archive}: no member {split}.jsonl, .json, .csv or .parquet; the archive holds"
            f" {listed(seen)}{'; ' if other else ''}{other}; for {split}/<label>/ folders set"
            " data.format=folder"
        )


def stream_rows(
    stream: io.BufferedReader, name: str, reading: Reading, columns: WantedColumns
) -> Rows:
    """Rows of a decompressed file, in the format that its content shows."""
    chosen = _format(stream.peek(_SNIFFED_BYTES), name, reading)
    if chosen == "parquet":
        return parquet_rows(stream, reading, columns)
    if chosen == "csv":
        return csv_rows(stream, reading, columns)
    return {"jsonl": jsonl_rows, "json": json_rows}[chosen](stream, reading)


def _format(head: bytes, name: str, reading: Reading) -> str:
    """The format by content; by name only where the content is text that could be anything."""
    wanted, named = reading.config.format, named_format(name)
    text = head.removeprefix(BOM).lstrip()
    content = "parquet" if head.startswith(b"PAR1") else _OPENINGS.get(text[:1])
    if content == "jsonl" and (
        wanted == "json" or (wanted == "auto" and named == "json" and is_indented_object(text))
    ):
        content = "json"  # one object, which json_rows takes for an array of one
    if content == "json" and "jsonl" in (wanted, named if wanted == "auto" else None):
        raise DataError(
            f"{reading.name}:1: this is a JSON array: write one object per line, or set"
            " data.format=json"
        )
    if wanted != "auto":
        if text and content != wanted and (content is not None or wanted == "parquet"):
            raise DataError(
                f"{reading.name}: data.format={wanted}, but the content is"
                f" {content or 'something else'} (it begins with {text[:12]!r}); set"
                f" data.format={content or 'auto'}"
            )
        return wanted
    if content is not None:
        if named not in (content, None):
            reading.facts.warn(f"{reading.name}: named {named}, but read as {content}: it is that")
        return content
    if named == "parquet" or (named is None and text):
        raise DataError(
            f"{reading.name}: not recognised (it begins with {text[:12]!r}); name it .jsonl, .json,"
            " .csv or .parquet after its content, or set data.format"
        )
    return named or "jsonl"
