"""Files, archives, folders and saved datasets -> records, streamed; faults have their place."""

import io
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.errors import DataError, MappingError
from data.kinds import FUNCTION, KINDS
from data.readers.archives import Member, opened
from data.readers.columns import Columns
from data.readers.conversations import sample_conversation
from data.readers.database import sqlite_rows
from data.readers.folders import folder_samples, member_samples, refuse_irregular
from data.readers.formats import (
    MAX_LINE_BYTES,
    Rows,
    csv_rows,
    is_indented_object,
    json_rows,
    jsonl_rows,
)
from data.readers.indexed import index_rows
from data.readers.locate import archive_splits
from data.readers.names import is_called, is_data, is_readable, is_text, named_format, parsed
from data.readers.patterns import match_rows
from data.readers.reading import BOM, ReadFacts, Reading, listed, not_rows, shown
from data.readers.rows import row_records
from data.readers.streams import decompressed, is_tar, is_zip
from data.readers.tables import dataset_rows, is_saved_dataset, parquet_rows
from data.records import CodeSample, Conversation, Document
from data.text.labels import fixed_names

_SNIFFED_BYTES = 1 << 12
_Test = Callable[[str], bool]  # of a member by its name
_MAGIC = {b"PAR1": "parquet", b"SQLite format 3\0": "sqlite"}
_OPENINGS = {b"{": "jsonl", b"[": "json"}


@dataclass(frozen=True)
class _Source:
    """One file of rows or of text, read to its end before the next one.

    Attributes:
        reading: Names it.
        name: Decides the format where the content does not.
        stream: Its decompressed bytes; None for a saved dataset.
        folder: Of a saved dataset.
    """

    reading: Reading
    name: str
    stream: io.BufferedReader | None = None
    folder: Path | None = None

    @property
    def is_text(self) -> bool:
        return is_text(self.name) and self.reading.config.format == "auto"

    def rows(self, columns: Columns) -> Rows:
        if self.folder is not None:
            return dataset_rows(self.folder, self.reading, columns)
        assert self.stream is not None
        if self.reading.config.functions is not None:
            functions = _listed_functions(self.reading, columns)
            return index_rows(self.stream, functions, self.reading)
        return _stream_rows(self.stream, self.name, self.reading, columns)


def _listed_functions(reading: Reading, columns: Columns) -> Rows:
    """The rows of data.functions, whose labels may be in the index file."""
    path = Path(str(reading.config.functions))
    config = reading.config.model_copy(update={"functions": None})
    own = Reading(shown(path.name), config, reading.facts, reading.split)
    for source in _sources(path, "", own, language=False):
        yield from source.rows(columns)


def read_records(
    path: Path, split: str, config: DataConfig, facts: ReadFacts | None = None, name: str = ""
) -> Iterator[CodeSample]:
    """Stream the functions of a split, in the order of the source.

    Args:
        path: One of locate's: a file of any format and compression, an archive, of which the
            member named after the split is read, a saved dataset, or a folder of label folders.
        split: "train", "valid" or "test".
        config: Format, field and label mapping, tolerance for bad rows.
        facts: Filled while reading.
        name: What messages call the file; its own name unless given.

    Raises:
        DataError: A source or a row that is not what the dataset promises, with file and line.
    """
    yield from _read(path, split, config, facts, name, language=False)


def read_language(
    path: Path, split: str, config: DataConfig, facts: ReadFacts | None = None, name: str = ""
) -> Iterator[Conversation | Document]:
    """Stream the conversations or documents of a file, in its order.

    Args:
        path: One of locate's: a file of any format and compression, of which .txt and .md are one
            document; an archive, of which the member named after the split is read, or every file
            where none is named after a split; or a saved dataset.
        split: "train", "valid" or "test".
        config: records, fields, format, tolerance for bad rows.
        facts: Filled while reading.
        name: What messages call the file; its own name unless given.

    Raises:
        DataError: A source or a row that is not what the kind promises, with file and line.
    """
    if config.format == "folder":
        raise DataError("data.format=folder is for functions in label folders; set it to auto")
    yield from _read(path, split, config, facts, name, language=True)


def _read(
    path: Path,
    split: str,
    config: DataConfig,
    facts: ReadFacts | None,
    name: str,
    *,
    language: bool,
) -> Iterator[Any]:
    facts = ReadFacts() if facts is None else facts
    facts.labels.fix(fixed_names(config))
    reading = Reading(shown(name or path.name), config, facts, split)
    if language and not reading.is_binary:
        raise MappingError(
            f"data.labels {config.labels}: a language model answers vulnerable or not, so labels"
            " become 0 or 1"
        )
    columns = Columns(config, config.records if language else FUNCTION)
    num_before, empty = reading.facts.num_rows, reading.name
    is_saved = is_saved_dataset(path) and config.format != "folder"
    with reading.intact():
        if not language and not is_saved and (path.is_dir() or config.format == "folder"):
            yield from _labelled(path, split, reading)
        else:
            with closing(_sources(path, split, reading, language)) as sources:
                for source in sources:
                    empty = source.reading.name
                    yield from (
                        _language(source, columns)
                        if language
                        else row_records(source.rows(columns), columns, source.reading)
                    )
    if reading.facts.num_rows == num_before:
        raise DataError(
            f"{empty}: no rows; a file needs records: one JSON object per line in jsonl, elements"
            " of the array in json, rows under the header in csv,"
            f" {'text in .txt and .md' if language else 'files in folders'}"
        )


def _language(source: _Source, columns: Columns) -> Iterator[Conversation | Document]:
    reading = source.reading
    if not source.is_text:
        for record in row_records(source.rows(columns), columns, reading):
            if isinstance(record, CodeSample):
                yield sample_conversation(record, reading.name)
            else:
                yield record
        return
    kind = columns.kind_or("text")
    if KINDS[kind].holds != "text":
        raise DataError(
            f"{reading.name}: data.records={kind}, but this is a file of text; set"
            " data.records=text, or data.format to what it holds"
        )
    assert source.stream is not None
    raw = source.stream.read(MAX_LINE_BYTES + 1)
    if len(raw) > MAX_LINE_BYTES:
        raise DataError(f"{reading.name}: a text above {MAX_LINE_BYTES} bytes; split the file")
    text = reading.whole_text(raw, reading.name)
    if text is not None:
        yield Document(reading.name, text, reading.name, reading.name, kind)


def _labelled(path: Path, split: str, reading: Reading) -> Iterator[Any]:
    """Functions in label folders, on disk or in an archive."""
    if path.is_dir():
        _refuse_format(path, reading, "folder", "a folder")
        yield from folder_samples(path, reading)
        return
    refuse_irregular(path, f"{path}:")
    with path.open("rb") as raw:
        _, members = opened(raw, reading)
        if members is None:
            raise DataError(f"{path}: data.format=folder, but this is neither folder nor archive")
        yield from member_samples(members, split, reading)


def _sources(
    path: Path, split: str, reading: Reading, language: bool
) -> Generator[_Source, None, None]:
    """The files of rows or text that a path holds, opened."""
    config = reading.config
    if is_saved_dataset(path):
        if not language:
            _refuse_format(path, reading, "datasets", "a folder with a saved dataset")
        yield _Source(reading, path.name, folder=path)
        return
    refuse_irregular(path, f"{path}:")
    if config.format == "datasets":
        raise DataError(
            f"{path}: data.format=datasets, but this is a file; a dataset saved to disk is a folder"
            " with state.json (unpack it if it is in an archive)"
        )
    is_wanted: _Test = partial(is_readable, texts=language)
    if splits := archive_splits(path, texts=language)[0]:
        is_wanted = partial(is_called, split=split, texts=language)
    with path.open("rb") as raw:
        stream, members = opened(raw, reading)
        if members is None:
            yield _Source(reading, path.name, stream)
        else:
            yield from _members(members, split, reading, is_wanted, splits)


def _members(
    members: Iterable[Member],
    split: str,
    reading: Reading,
    is_wanted: _Test,
    splits: Collection[str],
) -> Iterator[_Source]:
    """The wanted members of an archive; one at most is called after the split, or its shards."""
    names: list[str] = []
    found, unread = "", []
    for member in members:
        names.append(member.name)
        del names[100:]
        if not is_wanted(member.name):
            unread += [member.name] if _is_left_over(member.name, splits) else []
            continue
        if found and splits and _whole(found) != _whole(member.name):
            raise DataError(
                f"{reading.name}: {found!r} and {member.name!r} both hold {split}; keep one"
            )
        found = member.name
        inner = replace(reading, name=shown(f"{reading.name}::{member.name}"))
        with member.open() as stream:
            content = decompressed(stream, inner)
            if is_tar(content) or is_zip(content):
                raise DataError(f"{inner.name}: an archive within an archive; unpack the outer")
            yield _Source(inner, member.name.rpartition("/")[2], content)
    if unread:
        reading.facts.warn(f"{reading.name}: members not read: {listed(unread)}")
    if not found:
        if "[Content_Types].xml" in names:
            raise DataError(f"{reading.name}: an Office file; save the sheet as CSV in UTF-8")
        other = "".join(f"; {warning}" for warning in reading.facts.warnings)
        endings, remedy = ".json, .csv, .parquet, .txt or .md", ""
        if not is_wanted(f"{split}.txt"):
            endings = ".json, .csv or .parquet"
            remedy = f"; for {split}/<label>/ folders set data.format=folder"
        raise DataError(
            f"{reading.name}: no member {split}.jsonl, {endings}; the archive holds"
            f" {listed(names)}{other}{remedy}"
        )


def _whole(member: str) -> str:
    folder, _, base = member.rpartition("/")
    return f"{folder}/{parsed(base).whole}"


def _is_left_over(member: str, splits: Collection[str]) -> bool:
    """Whether a member holds data that no split reads."""
    base = member.rpartition("/")[2]
    return is_data(base, texts=True) and parsed(base).split not in splits


def _refuse_format(path: Path, reading: Reading, wanted: str, found: str) -> None:
    if reading.config.format not in ("auto", wanted):
        raise DataError(
            f"{path}: data.format={reading.config.format}, but this is {found}; set"
            f" data.format={wanted}"
        )


def _stream_rows(stream: io.BufferedReader, name: str, reading: Reading, columns: Columns) -> Rows:
    """Rows of a decompressed file, in the format that its content shows."""
    if reading.config.path_pattern is not None:
        raise DataError(
            f"{reading.name}: data.path_pattern is for source files; set data.format=folder, also"
            " for an archive of them"
        )
    if reading.config.text_pattern is not None:
        return match_rows(stream, reading)
    chosen = _format(stream.peek(_SNIFFED_BYTES), name, reading)
    if reading.config.query is not None and chosen != "sqlite":
        raise DataError(f"{reading.name}: data.query is set, but this is {chosen}, not SQLite")
    if chosen in ("jsonl", "json"):
        return {"jsonl": jsonl_rows, "json": json_rows}[chosen](stream, reading)
    with_columns = {"parquet": parquet_rows, "csv": csv_rows, "sqlite": sqlite_rows}
    return with_columns[chosen](stream, reading, columns)


def _format(head: bytes, name: str, reading: Reading) -> str:
    """The format by content; by name only where the content is text that could be anything."""
    wanted, named = reading.config.format, named_format(name)
    if known := not_rows(head):
        raise DataError(f"{reading.name}: {known}")
    text = head.removeprefix(BOM).lstrip()
    content = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    content = content or _OPENINGS.get(text[:1])
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
        if text and content != wanted and (content is not None or wanted in _MAGIC.values()):
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
