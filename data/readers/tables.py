"""Parquet files and Hugging Face datasets saved to disk -> rows (number, {column: value})."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import DataError, json_object, parsing
from data.kinds import KINDS
from data.readers.columns import Columns, Found
from data.readers.formats import Rows
from data.readers.messages import ARGUMENTS, CALLS
from data.readers.reading import Reading, RowFault, listed
from data.readers.streams import MAX_RATIO, RATIO_FLOOR_BYTES

_BATCH_ROWS = 256  # held at once; 256 of the longest functions seen in the field are 100 MB
# These files need seeking. Inside an archive, where there is none, it is held in memory.
MAX_SPOOLED_BYTES = 1 << 30
_BOOLEANS = '{"false": 0, "true": 1}'
_DATASET_FILES = ("state.json", "dataset_info.json")


def parquet_rows(stream: io.BufferedReader, reading: Reading, columns: Columns) -> Rows:
    """Rows of a parquet file, a batch at a time; a row's place is its number, counted from 1.

    Raises:
        DataError: Damaged, or a column is missing or of a type that holds no code or label.
    """
    from pyarrow import parquet

    reading.unit, reading.fills_nulls = "row ", True
    source = stream if stream.seekable() else spooled(stream, reading)
    num_bytes = source.seek(0, io.SEEK_END)
    source.seek(0)
    with reading.intact(), parquet.ParquetFile(source) as file:
        schema = file.schema_arrow
        found = _found(schema, reading, columns)
        wanted = [name for name in schema.names if name in found.known]
        # no threads: arrow's would not survive the fork of a tokenising worker
        batches = file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False)
        yield from _rows(batches, reading, num_bytes)


def is_saved_dataset(folder: Path) -> bool:
    """One split written by datasets.Dataset.save_to_disk."""
    return all((folder / name).is_file() for name in _DATASET_FILES)


def dataset_rows(folder: Path, reading: Reading, columns: Columns) -> Rows:
    """Rows of a saved dataset, memory-mapped, no network and no code of the dataset's.

    Raises:
        DataError: As parquet_rows.
    """
    import datasets

    reading.unit, reading.fills_nulls = "row ", True
    _refuse_outside(folder)
    with reading.intact():
        dataset = datasets.load_from_disk(str(folder.resolve()), keep_in_memory=False)
        if not isinstance(dataset, datasets.Dataset):
            raise DataError(f"{folder}: holds several splits; name one of its folders")
        schema = dataset.features.arrow_schema
        found = _found(schema, reading, columns)
        names = _class_names(dataset.features, reading, found.label, columns.labels)
        wanted = [name for name in schema.names if name in found.known]
        tables = dataset.with_format("arrow").select_columns(wanted).iter(_BATCH_ROWS)
        batches = (batch for table in tables for batch in _sound(table))
        label = str(found.label)
        for number, row in _rows(batches, reading):
            value = row[label] if names else None
            if value is not None and 0 <= value < len(names):
                row[label] = names[value]
            yield number, row


def _sound(table: Any) -> Iterator[Any]:
    """Batches of a mapped file, whose damaged offsets would otherwise end the process.

    Text is checked as bytes: one that is not UTF-8 is the fault of its row.
    """
    import pyarrow

    raw = {"string": pyarrow.binary(), "large_string": pyarrow.large_binary()}
    for batch in table.to_batches():
        for column in batch.columns:
            column.view(raw.get(str(column.type), column.type)).validate(full=True)
        yield batch


def _found(schema: Any, reading: Reading, columns: Columns) -> Found:
    """The columns to read, after their types are known to be right."""
    from pyarrow import types

    names: list[str] = schema.names
    refuse_twice(names, f"{reading.name}: the schema")
    found = columns.find_in_file(names, reading.name)
    reading.facts.ignored_fields.update(set(names) - found.known)
    for name in filter(None, [*found.texts, found.label]):
        kind = schema.field(name).type
        fits = _is_text(kind.value_type if types.is_dictionary(kind) else kind)
        fits = fits or (KINDS[found.kind].holds == "turns" and types.is_list(kind))
        allowed = "a column of text"
        if name == found.label:
            is_boolean = types.is_boolean(kind)
            mapped = bool(columns.labels) and (fits or is_boolean or types.is_nested(kind))
            fits = mapped or types.is_integer(kind) or types.is_floating(kind)
            allowed = "a column of the numbers 0 and 1, or text, Booleans or lists with data.labels"
            allowed += f", here data.labels='{_BOOLEANS}'" if is_boolean else ""
        if not fits:
            raise DataError(f"{reading.name}: column {name!r} is {kind}; it must be {allowed}")
    return found


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(
        test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view)
    )


def _rows(batches: Iterator[Any], reading: Reading, num_compressed: int = 0) -> Rows:
    number = num_bytes = 0
    for batch in batches:
        num_bytes += batch.nbytes
        # a dictionary page of one long text can represent millions of rows
        refuse_bomb(num_bytes, num_compressed, reading)
        names = batch.schema.names
        for values in zip(*(_values(column, reading) for column in batch.columns), strict=True):
            number += 1
            yield number, dict(zip(names, values, strict=True))


def refuse_bomb(num_bytes: int, num_compressed: int, reading: Reading) -> None:
    """Raises DataError if rows are far larger than their file, whose size is 0 if not known."""
    if num_compressed and num_bytes > max(num_compressed * MAX_RATIO, RATIO_FLOOR_BYTES):
        raise DataError(
            f"{reading.name}: {num_compressed} bytes became more than {num_bytes}: above"
            f" {MAX_RATIO} to 1 this is taken for a decompression bomb"
        )


def refuse_twice(names: list[str], where: str) -> None:
    """Raises DataError if two columns have one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where} names {listed(twice)} twice; keep one")


def _values(column: Any, reading: Reading) -> list[Any]:
    """A column's values; where a text is not UTF-8 it is repaired, or left as bytes and refused."""
    import pyarrow

    try:
        values: list[Any] = column.to_pylist()
        if pyarrow.types.is_nested(column.type):
            values = [_without_nulls(value) for value in values]
    except UnicodeDecodeError:
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        values = [as_text(raw, reading) for raw in column.cast(pyarrow.large_binary()).to_pylist()]
    return values


def _without_nulls(value: Any, *, is_call: bool = False) -> Any:
    """A nested value without the keys that only other rows have: a table fills them with null.

    The arguments of a call keep them: its tool may say what a null means.
    """
    if isinstance(value, dict):
        return {
            key: each
            if is_call and key in ARGUMENTS
            else _without_nulls(each, is_call=is_call or key in CALLS)
            for key, each in value.items()
            if each is not None
        }
    if isinstance(value, list):
        return [_without_nulls(each, is_call=is_call) for each in value]
    return value


def as_text(raw: bytes | None, reading: Reading) -> str | bytes | None:
    """UTF-8; bytes that are not stay bytes, which no column accepts."""
    if raw is None:
        return None
    try:
        return reading.decoded(raw)
    except RowFault:
        return raw


def _class_names(features: Any, reading: Reading, label: str | None, labels: Any) -> list[str]:
    """Names of a ClassLabel column: [vulnerable, safe] stores 0 for vulnerable."""
    names = list(getattr(features.get(label), "names", None) or [])
    if not names or names == ["0", "1"]:
        return []
    if not labels:
        raise DataError(
            f"{reading.name}: column {label!r} stores the classes {listed(names)}; say"
            f" which is which, e.g. data.labels={{{names[0]}: 0, {names[-1]}: 1}}"
        )
    return names


def _refuse_outside(folder: Path) -> None:
    """A dataset's state.json lists its files: none may be elsewhere."""
    state, remedy = folder / _DATASET_FILES[0], "save the dataset again"
    values = json_object(state, DataError, remedy)
    with parsing(f"{state} is not a list of data files", DataError, remedy):
        for entry in values["_data_files"]:
            path = folder / str(entry["filename"])
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"{state} names {path}, which is outside the dataset; {remedy}")


def spooled(stream: io.BufferedReader, reading: Reading) -> io.BytesIO:
    """A whole stream in memory, for a format that needs seeking where there is none."""
    content = io.BytesIO()
    while block := stream.read1(1 << 20):
        content.write(block)
        if content.tell() > MAX_SPOOLED_BYTES:
            raise DataError(
                f"{reading.name}: above {MAX_SPOOLED_BYTES} bytes, compressed or in an archive,"
                " it would be held in memory and is refused; unpack it"
            )
    return content
