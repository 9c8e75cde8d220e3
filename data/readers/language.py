"""Files, archives and saved datasets -> conversations and documents, streamed."""

import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data.config import DataConfig
from data.errors import DataError
from data.kinds import KINDS
from data.readers.columns import Columns, WantedColumns
from data.readers.conversations import row_conversations, sample_conversation
from data.readers.corpus import files_of_split, is_readable, is_text, member_names
from data.readers.formats import MAX_LINE_BYTES, Rows
from data.readers.kinds import AnyColumns, LanguageColumns, kind_of, refuse_other_fields
from data.readers.read import opened, stream_rows
from data.readers.reading import ReadFacts, Reading, listed, shown
from data.readers.rows import row_samples
from data.readers.streams import decompressed, is_tar, is_zip
from data.readers.tables import dataset_rows, is_saved_dataset
from data.records import Conversation, Document


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

    def rows(self, columns: WantedColumns) -> Rows:
        if self.folder is not None:
            return dataset_rows(self.folder, self.reading, columns)
        assert self.stream is not None
        return stream_rows(self.stream, self.name, self.reading, columns)


def read_language(
    path: Path, split: str, config: DataConfig, facts: ReadFacts | None = None
) -> Iterator[Conversation | Document]:
    """Stream the conversations or documents of a file, in its order.

    Args:
        path: One of language_paths: a file of any format and compression, of which .txt and .md are
            one document; an archive, of which the member named after the split is read, or every
            file where none is named after a split; or a saved dataset.
        split: "train", "valid" or "test".
        config: records, fields, format, tolerance for bad rows.
        facts: Filled while reading.

    Raises:
        DataError: A source or a row that is not what the kind promises, with file and line.
    """
    refuse_other_fields(config)
    if config.format == "folder":
        raise DataError("data.format=folder is for functions in label folders; set it to auto")
    facts = facts if facts is not None else ReadFacts()
    num_before = facts.num_rows
    kind = config.records if config.records != "auto" else _first_kind(path, split, config)
    with closing(_sources(path, split, config, facts)) as sources:
        for source in sources:
            yield from _records(source, kind, config)
    if facts.num_rows == num_before:
        raise DataError(
            f"{path.name}: no rows; a file needs records: one JSON object per line in jsonl,"
            " elements of the array in json, rows under the header in csv, text in .txt and .md"
        )


def _records(source: _Source, kind: str, config: DataConfig) -> Iterator[Conversation | Document]:
    reading = source.reading
    if source.is_text:
        if KINDS[kind].holds != "text":
            raise DataError(
                f"{reading.name}: data.records={kind}, but this is a file of text; set"
                " data.records=text, or data.format to what it holds"
            )
        yield from _document(source)
    elif KINDS[kind].holds == "function":
        columns = Columns.of(config)
        for sample in row_samples(source.rows(columns), columns, reading):
            yield sample_conversation(sample, reading.name)
    else:
        wanted = LanguageColumns(kind, config.fields)
        yield from row_conversations(source.rows(wanted), wanted, reading)


def _document(source: _Source) -> Iterator[Document]:
    """A whole file of text."""
    reading = source.reading
    assert source.stream is not None
    raw = source.stream.read(MAX_LINE_BYTES + 1)
    if len(raw) > MAX_LINE_BYTES:
        raise DataError(f"{reading.name}: a text above {MAX_LINE_BYTES} bytes; split the file")
    text = reading.whole_text(raw, reading.name)
    if text is not None:
        yield Document(reading.name, text, reading.name, reading.name)


def _first_kind(path: Path, split: str, config: DataConfig) -> str:
    """The kind of the first row there is; an empty source says nothing."""
    with closing(_sources(path, split, config, ReadFacts())) as sources:
        for source in sources:
            if source.is_text:
                return "text"
            for place, row in source.rows(AnyColumns()):
                return kind_of(row, config, source.reading.origin(place))
    return "text"


def _sources(
    path: Path, split: str, config: DataConfig, facts: ReadFacts
) -> Generator[_Source, None, None]:
    reading = Reading(shown(path.name), config, facts)
    if path.is_dir() and is_saved_dataset(path):
        yield _Source(reading, path.name, folder=path)
    elif not path.is_file():  # a fifo would wait for ever
        raise DataError(f"{path}: must be a regular file, because it is read several times")
    elif config.format == "datasets":
        raise DataError(
            f"{path}: data.format=datasets, but this is a file; a dataset saved to disk is a folder"
            " with state.json"
        )
    else:
        wanted = _wanted_members(path, split, config)
        with path.open("rb") as raw:
            stream, members = opened(raw, reading)
            if members is None:
                yield _Source(reading, path.name, stream)
                return
            for member in members:
                if member.name in wanted:
                    inner = Reading(shown(f"{path.name}::{member.name}"), config, facts)
                    with member.open() as content:
                        unpacked = decompressed(content, inner)
                        if is_tar(unpacked) or is_zip(unpacked):
                            raise DataError(
                                f"{inner.name}: an archive within an archive; unpack the outer"
                            )
                        yield _Source(inner, member.name.rpartition("/")[2], unpacked)


def _wanted_members(path: Path, split: str, config: DataConfig) -> set[str]:
    """The one member that holds a split; all that can be read where none is named after a split."""
    names = member_names(path, config)
    if names is None:
        return set()
    by_split = files_of_split(names)
    own: Sequence[str] = by_split.get(split, [])
    if len(own) > 1:
        raise DataError(f"{path.name}: {own[0]!r} and {own[1]!r} both hold {split}; keep one")
    wanted = own if by_split else [name for name in names if is_readable(name)]
    if not wanted:
        raise DataError(
            f"{path.name}: no member {split}.jsonl, .json, .csv, .parquet, .txt or .md; the archive"
            f" holds {listed(names)}"
        )
    return set(wanted)
