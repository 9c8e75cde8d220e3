"""Prepared data on disk: complete or absent, built once, memory-mapped by every rank.

<root>/<key>/facts.json         counts and digests; written last
<root>/<key>/<split>/records.arrow, tokens.bin, starts.npy, record.npy, length.npy
                                supervised.bin, empty for functions
"""

import fcntl
import json
import os
import shutil
import uuid
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.prepared.table import R, RecordClass, RecordTable, RecordWriter
from data.records import CodeSample
from data.text.tokenization import ExampleSet, Pieces

FACTS = "facts.json"
RECORDS, _TOKENS, _SUPERVISED = "records.arrow", "tokens.bin", "supervised.bin"


def default_root() -> Path:
    """Where prepared data is kept without data.cache_dir."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "focaltune"


def cached(root: Path, key: str, build: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The folder of an entry: the first process builds it while the others wait.

    Args:
        root: Created readable for its owner only, as it holds copies of the user's code.
        key: Digest of everything that decides the content.
        build: Fills a new folder and returns its facts.

    Returns:
        A complete folder: an interrupted build leaves none.
    """
    entry = root / key
    if _is_whole(entry):  # before anything is written: the root can be read-only
        return entry
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"data.cache_dir {root} cannot be made: {error}; name another") from error
    with (root / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_whole(entry):
            return entry
        _remove_abandoned(root, key)
        if entry.exists():
            shutil.rmtree(entry)
        building = root / f".{key}-{uuid.uuid4().hex}"
        building.mkdir()
        try:
            facts = build(building)
            (building / FACTS).write_text(
                json.dumps({**facts, "bytes": _sizes(building)}, indent=1), encoding="utf-8"
            )
            for path in (*building.rglob("*"), building):
                to_disk(path)
            os.rename(building, entry)
            to_disk(root)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return entry


def read_facts(entry: Path) -> dict[str, Any]:
    """The facts of an entry."""
    facts: dict[str, Any] = json.loads((entry / FACTS).read_text(encoding="utf-8"))
    return facts


class SplitWriter(AbstractContextManager["SplitWriter"]):
    """Write the records and tokens of a split as they come.

    Args:
        folder: New folder of the split.
        vocab_size: Decides the bytes of a token.
        kind: Class whose fields are kept.
    """

    def __init__(self, folder: Path, vocab_size: int, kind: RecordClass) -> None:
        folder.mkdir()
        self.folder = folder
        self._dtype = token_dtype(vocab_size)
        self._lengths, self._records, self._code_lengths = array("i"), array("q"), array("i")
        self.num_tokens = 0
        with ExitStack() as stack:
            self._table = stack.enter_context(RecordWriter(folder / RECORDS, kind))
            self._tokens = stack.enter_context((folder / _TOKENS).open("wb"))
            self._supervised = stack.enter_context((folder / _SUPERVISED).open("wb"))
            self._stack = stack.pop_all()

    def append(self, records: Sequence[Any], pieces: Pieces) -> None:
        """Add records and their tokens."""
        self._table.append(records)
        self._tokens.write(pieces.tokens.astype(self._dtype).tobytes())
        if pieces.supervised is not None:
            self._supervised.write(pieces.supervised.tobytes())
        self._lengths.frombytes(pieces.lengths_E.astype(np.int32).tobytes())
        num_before = len(self._code_lengths)
        self._records.frombytes((pieces.record_E + num_before).astype(np.int64).tobytes())
        self._code_lengths.frombytes(pieces.code_lengths_N.tobytes())
        self.num_tokens += len(pieces.tokens)

    @property
    def num_records(self) -> int:
        """Records so far."""
        return len(self._code_lengths)

    def __exit__(self, *_: object) -> None:
        """Complete the files."""
        self._stack.close()
        starts = np.zeros(len(self._lengths) + 1, dtype=np.int64)
        np.cumsum(np.frombuffer(self._lengths, np.int32), out=starts[1:])
        for name, values in (
            ("starts", starts),
            ("record", np.frombuffer(self._records, np.int64)),
            ("length", np.frombuffer(self._code_lengths, np.int32)),
        ):
            np.save(self.folder / f"{name}.npy", values, allow_pickle=False)


def open_split(folder: Path, vocab_size: int, kind: type[R]) -> tuple[RecordTable[R], ExampleSet]:
    """The records and examples of a split, mapped from disk; all weights are 1."""
    table = RecordTable(folder / RECORDS, kind)
    is_functions = kind is CodeSample
    record_E = _mapped(folder, "record")
    examples = ExampleSet(
        tokens=_flat(folder / _TOKENS, token_dtype(vocab_size)),
        starts=_mapped(folder, "starts"),
        record_E=record_E,
        label_E=table.targets[record_E] if is_functions else np.zeros(len(record_E), np.int8),
        share_E=1.0 / np.bincount(record_E)[record_E],
        weight_E=np.ones(len(record_E), dtype=np.float32),
        num_records=len(table),
        supervised=None if is_functions else _flat(folder / _SUPERVISED, np.bool_),
    )
    return table, examples


def code_lengths(folder: Path) -> npt.NDArray[np.int32]:
    """Tokens of every record's whole text; -1 where it was too long to be tokenised."""
    return _mapped(folder, "length")


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """The narrowest type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def _mapped(folder: Path, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return values


def _flat(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    is_empty = not path.stat().st_size  # an empty file cannot be mapped
    return np.zeros(0, dtype) if is_empty else np.memmap(path, dtype, "r")


def _remove_abandoned(root: Path, own_key: str) -> None:
    """Remove builds whose process has ended: nobody holds the lock of their key."""
    for building in root.glob(".*-*"):
        key = building.name[1:].partition("-")[0]
        with (root / f"{key}.lock").open("w") as lock:
            try:
                if key != own_key:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(building)


def _is_whole(entry: Path) -> bool:
    if not (entry / FACTS).is_file():
        return False
    try:
        sizes: dict[str, int] = read_facts(entry)["bytes"]
    except (ValueError, KeyError, TypeError):
        return False
    files = {entry / name: size for name, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def _sizes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def to_disk(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
