"""The records of a split on disk: an Arrow file that is mapped, never loaded into memory."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from data.records import CodeSample, RecordSource

R = TypeVar("R", bound=CodeSample | RecordSource)
RecordClass = type[CodeSample] | type[RecordSource]


class RecordWriter(AbstractContextManager["RecordWriter"]):
    """Append records to an Arrow file, a batch at a time.

    Args:
        path: New file.
        kind: Class whose fields are written.
    """

    def __init__(self, path: Path, kind: RecordClass) -> None:
        import pyarrow as pa

        self._pa = pa
        self._names = kind._fields
        self._values = attrgetter(*kind._fields)
        self._schema = pa.schema(
            [(name, pa.int32() if name == "target" else pa.string()) for name in self._names]
        )
        self._writer = pa.ipc.new_file(str(path), self._schema)

    def append(self, records: Sequence[Any]) -> None:
        """Write records as one batch, with less than 2 GiB of text."""
        if not records:
            return
        columns = zip(self._names, zip(*map(self._values, records), strict=True), strict=True)
        arrays = [_numbers(v) if name == "target" else _texts(v) for name, v in columns]
        self._writer.write_batch(self._pa.record_batch(arrays, schema=self._schema))

    def __exit__(self, *_: object) -> None:
        """Complete the file."""
        self._writer.close()


def rewrite_targets(path: Path, target_of: npt.NDArray[np.int64]) -> None:
    """Put the target of each number in its place, in a file of RecordWriter."""
    import pyarrow as pa

    reader, rewritten = pa.ipc.open_file(pa.memory_map(str(path))), path.with_suffix(".new")
    with pa.ipc.new_file(str(rewritten), reader.schema) as writer:
        for place in range(reader.num_record_batches):
            batch = reader.get_batch(place)
            targets = _numbers(target_of[np.from_dlpack(batch["target"])])
            writer.write_batch(
                batch.set_column(batch.schema.names.index("target"), "target", targets)
            )
    os.replace(rewritten, path)


# From their bytes: pa.array would import pandas, to know its missing values.
def _numbers(values: npt.ArrayLike) -> Any:
    import pyarrow as pa

    numbers = np.asarray(values, np.int32)
    return pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(numbers)])


def _texts(values: Sequence[str]) -> Any:
    import pyarrow as pa

    text = "".join(values)
    encoded = text.encode()
    are_bytes = len(encoded) == len(text)  # each character is one
    lengths = map(len, values if are_bytes else [value.encode() for value in values])
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(encoded)]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


class RecordTable(Sequence[R]):
    """The records of a split, each read from disk when it is used.

    Args:
        path: A file of RecordWriter.
        kind: Class of the records.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        import pyarrow as pa

        self._kind = kind
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._columns = dict(zip(self._table.column_names, self._table.columns, strict=True))

    def __len__(self) -> int:
        """Number of records."""
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> list[R]: ...

    def __getitem__(self, index: int | slice) -> R | list[R]:
        """One record, or those of a slice."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        # By column: a slice of the table costs three times as much.
        place = index % len(self)
        return self._kind(**{name: c[place].as_py() for name, c in self._columns.items()})

    def __iter__(self) -> Iterator[R]:
        """All records in order, a batch of them in memory at a time."""
        for batch in self._table.to_batches():
            for row in batch.to_pylist():
                yield self._kind(**row)

    @cached_property
    def targets(self) -> npt.NDArray[np.int32]:
        """Target of every record."""
        parts = map(np.from_dlpack, self._table["target"].chunks)  # to_numpy would import pandas
        return np.concatenate([np.empty(0, np.int32), *parts])

    def column(self, name: str) -> Any:
        """A field of all records as an Arrow array, still on disk."""
        return self._table[name]
