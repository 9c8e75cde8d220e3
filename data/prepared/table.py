"""The records of a split on disk: an Arrow file that is mapped, never loaded into memory.

Targets, which every command reads whole, are an array beside it: read from the Arrow file they
would draw most of its pages into memory.
"""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import count
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
        self._names = _texts_of(kind)
        self._values = attrgetter(*self._names)
        self._targets_path = _targets_path(path) if _has_target(kind) else None
        self._targets = array("i")
        self._schema = pa.schema([(name, pa.string()) for name in self._names])
        self._writer = pa.ipc.new_file(str(path), self._schema)

    def append(self, records: Sequence[Any]) -> None:
        """Write records as one batch, with less than 2 GiB of text."""
        if not records:
            return
        arrays = [_texts(values) for values in zip(*map(self._values, records), strict=True)]
        self._writer.write_batch(self._pa.record_batch(arrays, schema=self._schema))
        if self._targets_path is not None:
            self._targets.extend(map(attrgetter("target"), records))

    def __exit__(self, *_: object) -> None:
        """Complete the files."""
        self._writer.close()
        if self._targets_path is not None:
            np.save(self._targets_path, np.frombuffer(self._targets, np.int32))


def rewrite_targets(path: Path, target_N: npt.NDArray[np.int32]) -> None:
    """Put others in the place of the targets that RecordWriter wrote."""
    np.save(_targets_path(path), target_N)


def _targets_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.target.npy")


def _has_target(kind: type[Any]) -> bool:
    return "target" in kind._fields


def _texts_of(kind: RecordClass) -> tuple[str, ...]:
    return tuple(name for name in kind._fields if name != "target")


# From its bytes: pa.array would import pandas, to know its missing values.
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
        self.targets: npt.NDArray[np.int32] = (
            np.load(_targets_path(path)) if _has_target(kind) else np.empty(0, np.int32)
        )

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
        return self._made({name: c[place].as_py() for name, c in self._columns.items()}, place)

    def __iter__(self) -> Iterator[R]:
        """All records in order, a batch of them in memory at a time."""
        rows = (row for batch in self._table.to_batches() for row in batch.to_pylist())
        yield from map(self._made, rows, count())

    def _made(self, texts: dict[str, Any], place: int) -> R:
        if _has_target(self._kind):
            texts["target"] = int(self.targets[place])
        return self._kind(**texts)

    def column(self, name: str) -> Any:
        """A field of all records as an Arrow array, still on disk."""
        return self._table[name]
