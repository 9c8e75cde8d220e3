"""A SQLite file -> rows (number, {column: value}) of one query; nothing is ever written."""

import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.readers.columns import Columns
from data.readers.formats import MAX_LINE_BYTES, Rows
from data.readers.reading import Reading, listed
from data.readers.tables import as_text, refuse_bomb, refuse_twice, spooled

# Reading tables, calling functions, and what WITH RECURSIVE needs: no ATTACH, PRAGMA or writing.
_READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, 33)
_UNWRITTEN = ("-wal", "-journal")


def sqlite_rows(stream: io.BufferedReader, reading: Reading, columns: Columns) -> Rows:
    """Rows of data.query, or of the only table; a row's place is its number, counted from 1.

    Rows that nobody reads to their end may be closed by another thread: whichever collects garbage.

    Args:
        stream: A file is read where it is; what is compressed or in an archive, in memory.
        reading: Names it.
        columns: Those that must be there.

    Raises:
        DataError: Damaged, the query fails, or there are several tables and no query.
    """
    reading.unit = "row "
    with reading.intact(), closing(_opened(stream, reading)) as database:
        database.text_factory = bytes  # a text that is not UTF-8 is the fault of its row
        cursor, num_bytes = _selected(database, reading), 0
        names = [column[0] for column in cursor.description]
        refuse_twice(names, f"{reading.name}: the query")
        where = f"{reading.name}: the rows of a SQLite database (data.query chooses them)"
        found = columns.find_in_file(names, where)
        reading.facts.ignored_fields.update(set(names) - found.known)
        size = stream.seek(0, io.SEEK_END) if stream.seekable() else 0
        for number, values in enumerate(cursor, 1):
            row = dict(zip(names, _texts(values, reading), strict=True))
            num_bytes += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
            refuse_bomb(num_bytes, size, reading)
            yield number, row


def _opened(stream: io.BufferedReader, reading: Reading) -> sqlite3.Connection:
    if not stream.seekable():
        content = bytearray(spooled(stream, reading).getvalue())
        _refuse_cut_off(bytes(content[:100]), len(content))
        content[18:20] = b"\1\1"  # in memory there is no write-ahead log to open
        database = sqlite3.connect(":memory:", check_same_thread=False)
        database.deserialize(bytes(content))
    else:
        path = Path(stream.name).resolve()
        _refuse_cut_off(stream.peek(100)[:100], path.stat().st_size)
        for ending in _UNWRITTEN:  # the file alone would be older, or torn
            beside = Path(f"{path}{ending}")
            if beside.is_file() and beside.stat().st_size:
                raise DataError(
                    f"{reading.name}: {beside.name} holds changes that are not in the file yet;"
                    " close the program that writes it, or open and close it with sqlite3"
                )
        uri = f"{path.as_uri()}?mode=ro&immutable=1"
        database = sqlite3.connect(uri, uri=True, check_same_thread=False)
    database.execute("PRAGMA trusted_schema = OFF")
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_LINE_BYTES)
    database.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY
    )
    return database


def _refuse_cut_off(head: bytes, num_bytes: int) -> None:
    """Raises EOFError where pages are missing: of an immutable file SQLite takes them for zeros."""
    page, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
    if head[24:28] == head[92:96] and num_bytes < pages * (65536 if page == 1 else page):
        raise EOFError(f"{num_bytes} bytes are there of {pages} pages")


def _selected(database: sqlite3.Connection, reading: Reading) -> sqlite3.Cursor:
    every = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    tables = sorted(str(name, "utf-8", "replace") for (name,) in every)
    tables = [name for name in tables if not name.startswith("sqlite_")]
    query = reading.config.query
    if query is None:
        if len(tables) != 1:
            raise DataError(
                f"{reading.name}: a SQLite database with the tables {listed(tables)}; set"
                " data.query to a SELECT of functions, as recipes/vulnerability/cvefixes.yaml does"
            )
        query = 'SELECT * FROM "{}"'.format(tables[0].replace('"', '""'))
    try:
        cursor = database.execute(query)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise DataError(
            f"{reading.name}: data.query: {error}; it must be one SELECT, and the tables are"
            f" {listed(tables)}"
        ) from error
    if cursor.description is None:
        raise DataError(f"{reading.name}: data.query gives no rows; it must be one SELECT")
    return cursor


def _texts(values: tuple[Any, ...], reading: Reading) -> Iterator[Any]:
    return (as_text(v, reading) if v.__class__ is bytes else v for v in values)
