"""Bytes of a jsonl, json or csv file -> rows (place, {column: value}); all but json streamed."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data.errors import DataError
from data.readers.columns import Columns
from data.readers.reading import BOM, Place, Reading, RowFault, listed, quote

Rows = Iterator[tuple[Place, dict[str, Any]]]

BLOCK_BYTES = 1 << 20
# A function of 50 MB is 100 MB with every character escaped; a longer line is not a function.
MAX_LINE_BYTES = 256 << 20
MAX_ARRAY_BYTES = 1 << 30  # of a file that is one JSON array, which is read whole
MAX_FIELD_CHARACTERS = 64 << 20  # of CSV, whose reader holds four bytes for each
_CSV_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
_UNCLOSED = ("unexpected end of data", "field larger than field limit")
_BLANKS = " \t\r\n"  # JSON's own
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_JSONL_ADVICE = "write one object per line"
_OBJECT_ADVICE = f"{_JSONL_ADVICE}; where the file is one indented object set data.format=json"
_OBJECTS_ADVICE = (
    "where every line is an object set data.format=jsonl; objects over several lines need '[' and"
    " ']' around them and ',' between them"
)
_ARRAY_ADVICE = "this is a JSON array: write one object per line, or set data.format=json"


def jsonl_rows(stream: io.BufferedReader, reading: Reading) -> Rows:
    """One object a line; a row's place is its line."""
    decode = _decoder().raw_decode
    for number, raw in numbered_lines(stream, reading):
        if len(raw) < 3 and not raw.strip():  # no object is shorter; an exception costs 4 us
            continue
        try:
            line = raw.decode("utf-8")
            row, end = decode(line)
            if line[end:].strip(_BLANKS):
                raise ValueError("text after the object")
        except (ValueError, RecursionError):  # blank, indented, damaged: rare, so taken slowly
            if not raw.strip():
                continue
            try:
                row = _decoded_row(reading.decoded(raw))
            except RowFault as fault:
                reading.bad_line(number, str(fault))
                continue
        if row.__class__ is dict:
            yield number, row
        else:
            advice = _ARRAY_ADVICE if isinstance(row, list) else _JSONL_ADVICE
            reading.bad_line(number, f"a row must be a JSON object, found {quote(row)}; {advice}")


def json_rows(stream: io.BufferedReader, reading: Reading) -> Rows:
    """Elements of one array, parsed one by one; a row's place is its element, counted from 1.

    A file that is one object is one row.

    Raises:
        DataError: The array is damaged. That ends it whatever data.max_bad_rows says, because
            nothing tells where the next element begins.
    """
    text = _ArrayText(stream, reading)
    opening = text.next_character()
    if opening == "{":
        row = text.element()
        if text.next_character():
            raise text.fault("text follows the first object", remedy=_OBJECTS_ADVICE)
        yield 1, row
        return
    if opening != "[":
        raise text.fault("an array of objects must begin with '['")
    reading.unit = "element "
    number, character = 0, text.next_character(skip=1)
    while character != "]":
        if number:
            if character != ",":
                raise text.fault("',' or ']' must follow an element", number)
            text.next_character(skip=1)
        number += 1
        row = text.element(number)
        if isinstance(row, dict):
            yield number, row
        else:
            reading.bad_line(number, f"an element must be a JSON object, found {quote(row)}")
        character = text.next_character()
    if text.next_character(skip=1):
        raise text.fault("text follows the array", number)


def is_indented_object(text: bytes) -> bool:
    """Whether the first line starts a multi-line object."""
    line, *others = text.splitlines()
    return bool(others) and _is_unfinished(line.decode("utf-8", "replace"))


def csv_rows(stream: io.BufferedReader, reading: Reading, columns: Columns) -> Rows:
    """Rows under a header; a row's place is its first line. Text stays text: "NA", "007", "".

    Args:
        stream: Comma separated, quoted with '"', quotes within doubled.
        reading: Names the file.
        columns: Those that must be there. In the target's "0", "1" and pandas' "1.0" are numbers,
            for CSV has no types; with data.labels they stay text, as the map's keys are.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)  # of the process; the default is 128 Ki
    undecodable: list[RowFault] = []
    reader = csv.reader(_csv_lines(stream, reading, undecodable), strict=True)
    header = _header(reader, reading, undecodable)
    if not header:
        return
    found = columns.find_in_file(header, f"{reading.name}:1: the first line must name the columns")
    numbers = header.index(found.label) if found.label and not columns.labels else None
    while True:
        place = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if any(fault in str(error) for fault in _UNCLOSED):  # one field took all the rest
                raise DataError(
                    f"{reading.origin(place)}: a quote opens in this row and never closes"
                    f" ({error}); double every quote within a field"
                ) from error
            reading.bad_line(place, f"not CSV: {error}; double every quote within a field")
            undecodable.clear()
            continue
        if undecodable:
            reading.bad_line(place, str(undecodable[0]))
            undecodable.clear()
        elif len(fields) == len(header):
            row: dict[str, Any] = dict(zip(header, fields, strict=True))
            if numbers is not None and fields[numbers] in _CSV_LABELS:
                row[header[numbers]] = _CSV_LABELS[fields[numbers]]
            yield place, row
        elif fields:
            fault = f"{len(fields)} fields, the header has {len(header)}"
            reading.bad_line(place, f"{fault}; quote fields that hold commas or line ends")


def numbered_lines(stream: io.BufferedReader, reading: Reading) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their ends, as an editor counts them: LF, CRLF or a lone CR.

    Whole blocks are split at once: an iteration a line costs more than parsing saves.
    """
    number, rest, size = 1, [_after_bom(stream)], 0
    while True:
        block = stream.read1(BLOCK_BYTES)
        # a CR at the very end may be half of a CRLF
        cut = max(block.rfind(b"\n"), block.rfind(b"\r", 0, -1)) + 1 if block else 0
        if block and not cut:
            rest.append(block)
            size += len(block)
            if size > MAX_LINE_BYTES:
                raise DataError(
                    f"{reading.name}:{number}: a line above {MAX_LINE_BYTES} bytes; this is no"
                    " function: check the file, or split it"
                )
            continue
        whole = b"".join([*rest, block[:cut]])
        lines = whole.splitlines(keepends=True)
        yield from enumerate(lines, number)
        if not block:
            return
        number += len(lines)
        rest, size = [block[cut:]], len(block) - cut


def _after_bom(stream: io.BufferedReader) -> bytes:
    return stream.read(len(BOM)).removeprefix(BOM)


class _DuplicateKeyError(ValueError):
    pass


def _decoder() -> json.JSONDecoder:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise _DuplicateKeyError(f"key {twice[:60]!r} occurs twice in one row; keep one")
        return row

    return json.JSONDecoder(object_pairs_hook=refuse_duplicates)


def _decoded_row(line: str) -> Any:
    advice = _ARRAY_ADVICE if line.lstrip(_BLANKS).startswith("[") else _JSONL_ADVICE
    try:
        return _decoder().decode(line)
    except _DuplicateKeyError as error:
        raise RowFault(str(error)) from error
    except json.JSONDecodeError as error:
        fault = f"{error.msg} at column {error.colno}"
        advice = _OBJECT_ADVICE if _is_unfinished(line) else advice
        raise RowFault(f"not a JSON object: {fault}; {advice}") from error
    except (ValueError, RecursionError) as error:  # digits without end, brackets without end
        raise RowFault(f"not a JSON object: {error}; {advice}") from error


def _is_unfinished(line: str) -> bool:
    """Whether a line opens an object and is JSON up to its end, which is not the object's."""
    line = line.strip(_BLANKS)
    try:
        _decoder().raw_decode(line)
    except json.JSONDecodeError as error:
        return line.startswith("{") and error.pos == len(line)
    except (ValueError, RecursionError):
        return False
    return False


class _ArrayText:
    """The text of an array or of one object, and the place of the next element in it."""

    def __init__(self, stream: io.BufferedReader, reading: Reading) -> None:
        self._name = reading.name
        self._decode = _decoder().raw_decode
        self._text = _bounded_text(stream, reading)
        self._place = 0

    def next_character(self, skip: int = 0) -> str:
        """The next one that is not blank, left where it is; "" at the end."""
        found = _NOT_BLANK.search(self._text, self._place + skip)
        self._place = found.start() if found else len(self._text)
        return found.group() if found else ""

    def element(self, number: int = 0) -> Any:
        """Parse the element that begins here, or the one object there is."""
        try:
            row, self._place = self._decode(self._text, self._place)
        except json.JSONDecodeError as error:
            self._place = min(error.pos, len(self._text))
            raise self.fault(error.msg, number) from error
        except (ValueError, RecursionError) as error:
            raise self.fault(str(error), number) from error
        return row

    def fault(
        self, message: str, number: int = 0, remedy: str = "the JSON is damaged or cut off"
    ) -> DataError:
        """What is wrong here, with the element and the line."""
        line = 1 + self._text.count("\n", 0, self._place)
        found = self._text[self._place : self._place + 20]
        where = f"{self._name}:element {number}" if number else self._name
        return DataError(f"{where}: line {line}: {message}, found {found!r}; {remedy}")


def _bounded_text(stream: io.BufferedReader, reading: Reading) -> str:
    """A whole file as text; each sequence of bytes that is not UTF-8 is counted."""
    raw = stream.read(MAX_ARRAY_BYTES + 1)
    if len(raw) > MAX_ARRAY_BYTES:
        raise DataError(
            f"{reading.name}: a JSON array above {MAX_ARRAY_BYTES} bytes is read whole and refused;"
            f" {_JSONL_ADVICE}, which is read piece by piece"
        )
    raw = raw.removeprefix(BOM)
    try:
        text = raw.decode("utf-8", reading.config.encoding_errors)
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{reading.name}: line {line}: not UTF-8 ({raw[error.start : error.start + 4]!r});"
            " convert the file to UTF-8, or set data.encoding_errors=replace"
        ) from error
    written = raw.count("\ufffd".encode())
    reading.facts.num_replaced += text.count("\ufffd") - written
    return text


def _csv_lines(
    stream: io.BufferedReader, reading: Reading, undecodable: list[RowFault]
) -> Iterator[str]:
    for _, raw in numbered_lines(stream, reading):
        try:
            yield reading.decoded(raw)
        except RowFault as fault:
            undecodable.append(fault)
            yield raw.decode("utf-8", "replace")  # the row is refused once it is whole


def _header(reader: Any, reading: Reading, undecodable: list[RowFault]) -> list[str]:
    try:
        header: list[str] = next((fields for fields in reader if fields), [])
    except csv.Error as error:
        raise DataError(f"{reading.name}:1: the header is not CSV: {error}") from error
    if undecodable:
        raise DataError(f"{reading.name}:1: the header is {undecodable[0]}")
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise DataError(
            f"{reading.name}:1: the header names {listed(twice)} twice; name every column once"
        )
    for delimiter in ";\t|":
        if len(header) == 1 and delimiter in header[0]:
            raise DataError(
                f"{reading.name}:1: fields are separated by {delimiter!r}, found"
                f" {quote(header[0])}; CSV needs commas: convert the file"
            )
    return header
