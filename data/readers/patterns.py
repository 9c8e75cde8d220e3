"""Files whose paths and texts hold fields, found by patterns -> rows (place, {column: value})."""

import io
import re
from collections.abc import Iterable, Iterator

from data.errors import DataError
from data.readers.archives import Member
from data.readers.formats import MAX_LINE_BYTES, Rows
from data.readers.reading import BOM, Reading, RowFault, listed, not_rows, shown


def match_rows(stream: io.BufferedReader, reading: Reading) -> Rows:
    """The matches of data.text_pattern in one file; a row's place is the line it begins in.

    Raises:
        DataError: The file is too long, or not text.
    """
    try:
        text = file_text(stream, reading)
    except RowFault as fault:
        raise DataError(f"{reading.name}: {fault}") from fault
    end = num_outside = 0
    for match, line in _matches(text, reading):
        num_outside += len(text[end : match.start()].strip())
        end = match.end()
        yield line, _fields(match)
    if num_outside := num_outside + len(text[end:].strip()):
        reading.facts.warn(
            f"{reading.name}: {num_outside} of {len(text)} characters are in no match of"
            " data.text_pattern and are not read"
        )


def file_rows(files: Iterable[Member], prefix: str, reading: Reading) -> Rows:
    """The rows of source files: what their paths say, and the text or the matches in it.

    Args:
        files: Each with its path as its name.
        prefix: Of their origins.
        reading: Names them.
    """
    config, stray, unmatched = reading.config, list[str](), list[str]()
    for file in files:
        found = re.search(config.path_pattern or "", file.name)
        if found is None or "/." in f"/{file.name}":
            stray.append(file.name)
            continue
        origin = shown(f"{prefix}{file.name}")
        try:
            with file.open() as stream:
                text = file_text(stream, reading)
        except RowFault as fault:
            reading.bad_line(origin, str(fault))
            continue
        if config.text_pattern is None:
            yield origin, {"code": text} | _fields(found)
            continue
        rows = [(f"{origin}:{n}", _fields(found) | _fields(m)) for m, n in _matches(text, reading)]
        unmatched += [] if rows else [file.name]
        yield from rows
    for names, what in ((stray, "path_pattern"), (unmatched, "text_pattern")):
        if names:
            reading.facts.warn(
                f"{reading.name}: {len(names)} files not read, in which data.{what} finds nothing:"
                f" {listed(names)}"
            )


def file_text(stream: io.BufferedReader, reading: Reading) -> str:
    """A whole file as text, its lines ended by LF.

    Raises:
        RowFault: It is too long, or not text.
    """
    raw = stream.read(MAX_LINE_BYTES + 1)
    if len(raw) > MAX_LINE_BYTES:
        raise RowFault(f"above {MAX_LINE_BYTES} bytes, too long to read; split or remove it")
    if known := not_rows(raw[:64]):
        raise RowFault(known)
    return reading.decoded(raw.removeprefix(BOM)).replace("\r\n", "\n")


def _matches(text: str, reading: Reading) -> Iterator[tuple[re.Match[str], int]]:
    """Each match and its line."""
    line, end = 1, 0
    for match in re.finditer(reading.config.text_pattern or "", text, re.MULTILINE):
        line += text.count("\n", end, match.start())
        end = match.start()
        yield match, line


def _fields(match: re.Match[str]) -> dict[str, str]:
    return {name: value for name, value in match.groupdict().items() if value is not None}
