"""Index files, whose lines name functions of another file -> rows (line, {column: value})."""

import io
from collections.abc import Mapping
from typing import Any

from data.errors import DataError
from data.kinds import FUNCTION, KINDS
from data.readers.formats import Rows, numbered_lines
from data.readers.reading import Reading, RowFault, plain_text, quote

_MAX_CHARACTERS = 1 << 30  # of the functions, which are held while the index is read


def index_rows(stream: io.BufferedReader, functions: Rows, reading: Reading) -> Rows:
    """A function for a line with its id, a pair for one with two ids and a label.

    Args:
        stream: The index file.
        functions: Rows of data.functions. Where they have no id, their place from 0 is it.
        reading: Names the index file.

    Raises:
        DataError: There are too many functions to hold, or two have one id.
    """
    fields = reading.config.fields
    names = {ours: fields.get(ours, ours) for ours in ("code", "code2", "target")}
    held = _by_id(functions, reading)
    for number, raw in numbered_lines(stream, reading):
        try:
            words = reading.decoded(raw).split()
            if len(words) not in (0, 1, 3):
                raise RowFault(f"a line must be an id, or two ids and a label, found {quote(raw)}")
            missing = [word for word in words[:2] if word not in held]
            if missing:
                raise RowFault(f"data.functions has no function {missing[0]!r}")
            first, *more = [held[word] for word in words[:2]] or [{}]
            if more and names["code"] not in first.keys() & more[0].keys():
                raise RowFault(
                    f"no field {names['code']!r}; name it with data.fields={{code: NAME}}"
                )
        except RowFault as fault:
            reading.bad_line(number, str(fault))
            continue
        if not more:
            yield from [(number, dict(first))] if words else []
            continue
        label: Any = int(words[2]) if words[2] in ("0", "1") else words[2]
        codes = (first[names["code"]], more[0][names["code"]])
        yield number, dict(zip(names.values(), (*codes, label), strict=True))


def _by_id(functions: Rows, reading: Reading) -> dict[str, Mapping[str, Any]]:
    own = reading.config.fields.get("id")
    ids = (own,) if own else KINDS[FUNCTION].ids
    held: dict[str, Mapping[str, Any]] = {}
    num_characters = 0
    for place, (_, row) in enumerate(functions):
        known = next(filter(None, (plain_text(row.get(column), column) for column in ids)), "")
        if (name := known or str(place)) in held:
            raise DataError(f"data.functions: two functions have the id {name!r}; keep one")
        held[name] = row
        num_characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if num_characters > _MAX_CHARACTERS:
            raise DataError(
                f"data.functions: above {_MAX_CHARACTERS} characters, too many to hold beside an"
                " index file; write each split to a jsonl of its own"
            )
    return held
