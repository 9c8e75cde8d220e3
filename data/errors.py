"""The error of everything that reads the user's data, and the boundary of all that is parsed."""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SHOWN = 160  # characters of what a library says
# Not the input's fault: the machine's, whoever ends the process, and defects of ours.
_OF_MACHINE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ESTALE)
_OF_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit, AssertionError, NameError, ImportError)


class DataError(ValueError):
    """A dataset that cannot be used: says the file, the line, what was found and the remedy."""

    exit_code = 3


class TokenizerError(DataError):
    """A tokenizer that cannot be used; it is one of the model's files."""

    exit_code = 4


class MappingError(DataError):
    """A recipe that maps fields or labels in a way no dataset could fit."""

    exit_code = 2


@contextmanager
def parsing(where: str | Callable[[], str], kind: type[ValueError], remedy: str) -> Iterator[None]:
    """The boundary around whatever parses input: all that a library raises becomes `kind`.

    Nothing is listed, for no library says what it raises; Rust's panics are no Exception. An error
    of ours passes, and so do a fault of the machine and a defect that input cannot cause.

    Args:
        where: The file and the place in it, and what is wrong there; a function, where the place
            moves.
        kind: Has an exit_code.
    """
    try:
        yield
    except BaseException as error:
        if hasattr(error, "exit_code") or isinstance(error, _OF_OURS):
            raise
        place = where if isinstance(where, str) else where()
        if isinstance(error, OSError) and error.errno in _OF_MACHINE:
            if error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, place) from error
        raise kind(f"{place} ({first_line(error)}); {remedy}") from error


def first_line(error: BaseException) -> str:
    """What a library says, shortened; its type too where the words alone say little."""
    line = " ".join(str(error).split("\n\n")[0].split())
    short = line if len(line) <= _SHOWN else line[:_SHOWN] + "..."
    return short if " " in short else f"{type(error).__name__} {short}".strip()


def file_text(path: Path, kind: type[ValueError], remedy: str, most_bytes: int) -> str:
    """A small text file in UTF-8.

    Raises:
        ValueError: `kind`: it is not a file, too long, or not UTF-8.
    """
    with parsing(f"{path} cannot be read", kind, remedy):
        if not path.is_file():  # reading a fifo would wait for ever
            raise kind(f"{path} is not a file (resolved: {path.resolve()}); {remedy}")
        with path.open("rb") as stream:
            raw = stream.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise kind(f"{path}: above {most_bytes:,} bytes, too long for what it is; {remedy}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        found = raw[error.start : error.start + 4]
        raise kind(f"{path}: line {line}: not UTF-8 ({found!r}); {remedy}") from error


def _constant(name: str) -> float:
    """Infinity, which models have; not NaN, which every comparison lets pass."""
    if name == "NaN":
        raise ValueError("it holds NaN, which is not a number")
    return float(name)


def json_object(
    path: Path, kind: type[ValueError], remedy: str, most_bytes: int = 64 << 20
) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
        ValueError: `kind`: as file_text, or it is not JSON, or not an object.
    """
    text = file_text(path, kind, remedy, most_bytes)
    with parsing(f"{path}: not JSON", kind, remedy):
        values = json.loads(text, parse_constant=_constant)
    if not isinstance(values, dict):
        raise kind(f"{path}: must hold a JSON object, found {str(values)[:40]!r}; {remedy}")
    return values
