"""The records of a split on disk: an Arrow file that is memory-mapped, never loaded."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from data.records import CodeSample

_COLUMNS = tuple(field.name for field in fields(CodeSample))


class RecordWriter(AbstractContextManager["RecordWriter"]):
    """Append records to an Arrow file, a batch at a time.

    Args:
        path: New file.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._pa = pa
        kinds = {"target": pa.int8()}
        self._schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _COLUMNS])
        self._writer = pa.ipc.new_file(str(path), self._schema)

    def append(self, samples: Sequence[CodeSample]) -> None:
        """Write samples as one batch; together they hold less than 2 GiB of code."""
        columns = {name: [getattr(s, name) for s in samples] for name in _COLUMNS}
        self._writer.write_batch(self._pa.record_batch(columns, schema=self._schema))

    def __exit__(self, *_: object) -> None:
        """Complete the file."""
        self._writer.close()


class RecordTable(Sequence[CodeSample]):
    """The records of a split, each read from disk when it is asked for.

    Args:
        path: What a RecordWriter wrote.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __len__(self) -> int:
        """Number of records."""
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> CodeSample: ...

    @overload
    def __getitem__(self, index: slice) -> list[CodeSample]: ...

    def __getitem__(self, index: int | slice) -> CodeSample | list[CodeSample]:
        """One record, or those of a slice."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return CodeSample(**self._table.slice(index % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[CodeSample]:
        """All records in order, a batch of them in memory at a time."""
        for batch in self._table.to_batches():
            for row in batch.to_pylist():
                yield CodeSample(**row)

    @cached_property
    def targets(self) -> npt.NDArray[np.int8]:
        """Target of every record."""
        targets: npt.NDArray[np.int8] = self._table["target"].to_numpy()
        return targets

    def column(self, name: str) -> Any:
        """A field of all records as an Arrow array, still on disk."""
        return self._table[name]
