"""Raw files -> CodeSample, streamed, with every fault named by file and line."""

import gzip
import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from data.config import RECORD_FIELDS, DataConfig
from data.errors import DataError
from data.records import CodeSample

SPLITS = ("train", "valid", "test")
_GZIP_MAGIC = b"\x1f\x8b"
_TAR_MAGIC_OFFSET = 257
_OTHER_ID = "idx"  # what CodeXGLUE and its descendants call the id
_SHOWN = 60  # characters of a wrong value quoted in a message


@dataclass
class ReadFacts:
    """What a reader passed over, for data.json and the banner."""

    num_rows: int = 0
    num_empty: int = 0
    ignored_fields: set[str] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        """Plain values for data.json."""
        return {
            "num_rows": self.num_rows,
            "num_empty_dropped": self.num_empty,
            "ignored_fields": sorted(self.ignored_fields),
        }


def split_path(config: DataConfig, split: str) -> Path:
    """The file that holds a split: its own key, or the one found under data.path.

    Raises:
        DataError: Nothing there; the message lists what was looked for.
    """
    explicit = getattr(config, split)
    if explicit is not None:
        return _existing(Path(explicit), f"data.{split}")
    if config.path is None:
        raise DataError(f"data.{split} is not set and there is no data.path; set one of the two")
    root = _existing(Path(config.path), "data.path")
    if root.is_file():
        return root
    candidates = [root / f"{split}{suffix}" for suffix in (".jsonl", ".jsonl.gz")]
    found = [path for path in candidates if path.is_file()]
    if len(found) != 1:
        names = " or ".join(path.name for path in candidates)
        raise DataError(f"{root}: expected exactly one of {names}, found {len(found)}")
    return found[0]


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def source_digest(path: Path) -> str:
    """sha256 of what a split is read from."""
    return file_digest(path)


def read_records(
    path: Path, split: str, config: DataConfig, facts: ReadFacts | None = None
) -> Iterator[CodeSample]:
    """Stream the samples of a split from .jsonl, .jsonl.gz or .tar[.gz].

    Args:
        path: File to read; of an archive the member named after the split is read.
        split: "train", "valid" or "test".
        config: Field mapping and format.
        facts: Filled while reading.

    Raises:
        DataError: A row that is not what the dataset promises, with file and line.
    """
    facts = facts if facts is not None else ReadFacts()
    rename = _field_mapping(config)
    with _opened(path, split, config.format) as (stream, name):
        for number, line in _lines(stream, name):
            row = _parse(line, f"{name}:{number}")
            facts.num_rows += 1
            facts.ignored_fields.update(row.keys() - rename.values() - {_OTHER_ID})
            sample = _sample(row, rename, f"{name}:{number}")
            if sample is None:
                facts.num_empty += 1
                continue
            yield sample
    if not facts.num_rows:
        raise DataError(f"{name}: no rows; a dataset needs one JSON object per line")


def _existing(path: Path, key: str) -> Path:
    if not path.exists():
        raise DataError(f"{key}: {path} does not exist (resolved: {path.resolve()})")
    if path.is_dir() and key != "data.path":
        raise DataError(f"{key}: {path} is a folder; name the file, or set data.path to the folder")
    return path


def _field_mapping(config: DataConfig) -> dict[str, str]:
    unknown = config.fields.keys() - set(RECORD_FIELDS)
    if unknown:
        raise DataError(
            f"data.fields: {sorted(unknown)} are not fields of ours; allowed: {list(RECORD_FIELDS)}"
        )
    return {name: name for name in RECORD_FIELDS} | config.fields


@contextmanager
def _opened(path: Path, split: str, wanted: str) -> Iterator[tuple[IO[bytes], str]]:
    """The byte stream of a split and the name its rows are reported under."""
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        plain = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if is_gzip else raw)
        is_tar = wanted == "tar" or (wanted == "auto" and _looks_like_tar(plain, path))
        plain.seek(0)
        if is_tar:
            yield from _tar_member(plain, path, split)
        else:
            yield plain, path.name


def _looks_like_tar(stream: IO[bytes], path: Path) -> bool:
    with _decompression_faults(path.name, lambda: 0):
        head = stream.read(_TAR_MAGIC_OFFSET + 5)
    return head[_TAR_MAGIC_OFFSET:] == b"ustar"


def _tar_member(stream: IO[bytes], path: Path, split: str) -> Iterator[tuple[IO[bytes], str]]:
    """The one regular member called <split>.jsonl, read in place, never written to disk."""
    seen = []
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                seen.append(member.name)
                if member.isreg() and Path(member.name).name == f"{split}.jsonl":
                    content = archive.extractfile(member)
                    assert content is not None  # a regular member always has content
                    yield content, f"{path.name}::{member.name}"
                    return
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the archive is damaged ({error}); fetch it again or check its digest"
        ) from error
    raise DataError(f"{path}: no member {split}.jsonl; the archive holds {seen[:20]}")


def _lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered, non-blank, decoded lines; any line ending; a byte order mark is passed over."""
    number = 0
    with _decompression_faults(name, lambda: number):
        for raw in chain.from_iterable(map(bytes.splitlines, stream)):  # a lone CR ends a line too
            number += 1
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not line.strip():
                continue
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name}:{number}: not UTF-8 at byte {error.start}"
                    f" ({line[error.start : error.start + 4]!r}); convert the file to UTF-8"
                ) from error


@contextmanager
def _decompression_faults(name: str, row: Callable[[], int]) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name}: compressed data is damaged or cut off after {row()} rows ({error});"
            " fetch the file again"
        ) from error


def _parse(line: str, where: str) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise DataError(f"{where}: key {key!r} stands twice in one row; keep one")
        return dict(pairs)

    is_array = line.lstrip().startswith("[")
    advice = "this is a JSON array: write one object per line" if is_array else "write one per line"
    try:
        row = json.loads(line, object_pairs_hook=refuse_duplicates)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        fault = f"{error.msg} at column {error.colno}"
        raise DataError(f"{where}: not a JSON object: {fault}; {advice}") from error
    except (ValueError, RecursionError) as error:  # digits without end, brackets without end
        raise DataError(f"{where}: not a JSON object: {error}; {advice}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, found {_quote(row)}; {advice}")
    return row


def _sample(row: dict[str, Any], rename: dict[str, str], where: str) -> CodeSample | None:
    """The row as a record; None when its code is blank."""
    for name in ("code", "target"):
        if rename[name] not in row:
            raise DataError(
                f"{where}: no field {rename[name]!r}; the row has {sorted(row)};"
                f" name it with data.fields, e.g. data.fields={{{name}: NAME}}"
            )
    code, target = row[rename["code"]], row[rename["target"]]
    if not isinstance(code, str):
        _refuse(where, rename["code"], code, "text")
    _refuse_lone_surrogate(where, rename["code"], code)
    if not isinstance(target, int) or isinstance(target, bool) or target not in (0, 1):
        _refuse(where, rename["target"], target, "the integer 0 or 1")
    if not code.strip():
        return None
    texts = {name: _text(row.get(rename[name]), where, rename[name]) for name in RECORD_FIELDS[2:]}
    texts["id"] = texts["id"] or _text(row.get(_OTHER_ID), where, _OTHER_ID) or where
    return CodeSample(code=code, target=target, origin=where, **texts)


def _text(value: Any, where: str, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        _refuse(where, name, value, "text or an integer")
    text = str(value)
    _refuse_lone_surrogate(where, name, text)
    return text


def _refuse_lone_surrogate(where: str, name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {name!r} holds {text[error.start]!r} at character {error.start}, half of a"
            " surrogate pair, which is no text; write the whole character or remove it"
        ) from error


def _refuse(where: str, name: str, value: object, allowed: str) -> NoReturn:
    raise DataError(f"{where}: {name!r} must be {allowed}, found {_quote(value)}")


def _quote(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'} ({type(value).__name__})"
