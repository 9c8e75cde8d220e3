"""Prepared data on disk: complete or absent, built once, memory-mapped by every rank.

<root>/focaltune-cache/CACHEDIR.TAG   marks the folder as ours
<root>/focaltune-cache/<key>/facts.json   counts, digests of all files; written last
<root>/focaltune-cache/<key>/<split>/records.arrow, tokens.bin, starts.npy, record.npy, length.npy,
                                records.target.npy of functions, supervised.bin of language
"""

import fcntl
import json
import os
import shutil
import sys
import time
import uuid
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from data.prepared.manifest import folder_fault, read_manifest, seal, to_disk
from data.prepared.table import R, RecordClass, RecordTable, RecordWriter
from data.records import CodeSample
from data.text.tokenization import ExampleSet, Pieces

FACTS = "facts.json"
_OWN_FOLDER = "focaltune-cache"
_TAG = "CACHEDIR.TAG"  # backup programs know it by its first line
_TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# focaltune made this folder.\n"
_MOST_MACHINES = 64
RECORDS, _TOKENS, _SUPERVISED = "records.arrow", "tokens.bin", "supervised.bin"


def default_root() -> Path:
    """Where prepared data is kept without data.cache_dir."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "focaltune"


def entries(root: Path) -> list[Path]:
    """Folders of the entries below a root."""
    own = root / _OWN_FOLDER
    return sorted(path.parent for path in own.glob(f"*/{FACTS}")) if _is_ours(own) else []


def cached(
    root: Path,
    key: str,
    build: Callable[[Path], Mapping[str, Any]],
    setting: str = "data.cache_dir",
) -> Path:
    """The folder of an entry: the first process builds it while the others wait.

    An entry is verified once on each machine for all processes that have started by then. A damaged
    one is built again.

    Args:
        root: Gets a folder of our own; nothing beside it is touched.
        key: Digest of everything that decides the content.
        build: Fills a new folder and returns its facts.
        setting: Recipe key of the root, for messages.

    Returns:
        A complete folder: an interrupted build leaves none.

    Raises:
        OSError: The folder cannot be made, or is not ours.
    """
    own = root / _OWN_FOLDER
    entry = own / key
    try:
        _make_own(own)
        lock = (own / f"{key}.lock").open("a+", encoding="utf-8")
    except OSError as error:
        if _is_ours(own) and not folder_fault(entry, FACTS):
            return entry  # read-only, and whole
        raise OSError(f"{setting} {root} cannot be used: {error}; name another") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_whole(entry, lock):
            return entry
        _remove_abandoned(own, key)
        if entry.exists():
            shutil.rmtree(entry)
        building = own / f".{key}-{uuid.uuid4().hex}"
        building.mkdir()
        try:
            facts = build(building)
            seal(building, FACTS, facts, "xxh3_128")
            for path in (*building.rglob("*"), building):
                to_disk(path)
            os.rename(building, entry)
            to_disk(own)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        _note_verified(lock, clock())
    return entry


def read_facts(entry: Path) -> dict[str, Any]:
    """The facts of an entry."""
    return read_manifest(entry / FACTS)


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
        label_E=table.targets[record_E] if is_functions else np.zeros(len(record_E), np.int32),
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


def _make_own(own: Path) -> None:
    """Make our folder with its tag, readable for its owner only: it holds copies of user code."""
    if _is_ours(own):
        return
    if own.is_dir() and any(own.iterdir()):
        raise OSError(f"{own} holds files of another program")
    own.parent.mkdir(parents=True, exist_ok=True)
    making = own.with_name(f".{own.name}-{uuid.uuid4().hex}")
    making.mkdir(mode=0o700)
    (making / _TAG).write_text(_TAG_TEXT, encoding="utf-8")
    try:
        os.rename(making, own)  # replaces an empty folder only
    except OSError:
        shutil.rmtree(making)
        if not _is_ours(own):  # else another process was first
            raise


def _is_ours(own: Path) -> bool:
    try:
        return (own / _TAG).read_text(encoding="utf-8") == _TAG_TEXT
    except (OSError, UnicodeDecodeError):
        return False


def _remove_abandoned(own: Path, own_key: str) -> None:
    """Remove builds whose process has ended: nobody holds the lock of their key."""
    for building in own.glob(".*-*"):
        key = building.name[1:].partition("-")[0]
        with (own / f"{key}.lock").open("a") as lock:
            try:
                if key != own_key:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(building)


def _is_whole(entry: Path, lock: TextIO) -> bool:
    """Whether an entry is as it was built; a check on this machine since our start is enough."""
    if not entry.exists():
        return False
    if _verified(lock).get(_boot_id(), -1.0) > _started():
        return True
    now = clock()
    if fault := folder_fault(entry, FACTS):
        sys.stderr.write(f"{entry} is damaged and is built again: {fault}\n")
        return False
    _note_verified(lock, now)
    return True


def _verified(lock: TextIO) -> dict[str, float]:
    """Boot id of a machine -> when its last verification began, by its clock."""
    lock.seek(0)
    try:
        found = json.loads(lock.read() or "{}")
        return {str(machine): float(seconds) for machine, seconds in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _note_verified(lock: TextIO, began: float) -> None:
    machines = {**_verified(lock), _boot_id(): began}
    lock.seek(0)
    lock.truncate()
    json.dump(dict(list(machines.items())[-_MOST_MACHINES:]), lock)
    lock.flush()


def clock() -> float:
    """Seconds since this machine booted: a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _started() -> float:
    """When this process started, by the same clock."""
    after_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22, proc(5)
