"""Rows (place, {column: value}) -> CodeSample, with every value checked."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data.errors import DataError
from data.readers.columns import TEXT_FIELDS, Columns
from data.readers.formats import Rows
from data.readers.reading import (
    Place,
    ReadFacts,
    Reading,
    RowFault,
    plain_text,
    refuse,
    refuse_lone_surrogate,
)
from data.records import CodeSample

_STATUS, _COMMIT = TEXT_FIELDS.index("status"), TEXT_FIELDS.index("commit")
_NO_TEXTS = [""] * len(TEXT_FIELDS)
_MAX_LAYOUTS = 1000  # sets of columns remembered, and columns listed as ignored


@dataclass(frozen=True)
class _Layout:
    """What is read of rows that have the same columns."""

    ids: list[str]
    texts: list[tuple[int, str]]  # place among TEXT_FIELDS, column


def row_samples(rows: Rows, columns: Columns, reading: Reading) -> Iterator[CodeSample]:
    """Stream the functions of rows; a row that is none is counted or refused.

    Raises:
        DataError: More bad rows than data.max_bad_rows, or an id that occurs twice.
    """
    facts, ids = reading.facts, Ids(reading)
    layouts: dict[tuple[str, ...], _Layout] = {}
    names: tuple[str, ...] | None = None
    for place, row in rows:
        facts.num_rows += 1
        try:
            if (found := tuple(row)) != names:
                layout = layouts.get(found) or _layout(found, columns, facts)
                if len(layouts) < _MAX_LAYOUTS:
                    layouts[found] = layout
                names = found
            texts = _NO_TEXTS.copy()
            for index, column in layout.texts:
                value = row[column]
                plain = value.__class__ is str and value.isascii()
                texts[index] = value if plain else plain_text(value, column)
            origin = reading.origin(place)
            own_id = _own_id(row, layout)
            if columns.pair is None:
                code, target = _function(row, columns)
                made = [CodeSample(own_id or origin, code, target, origin, *texts)]
            else:
                texts[_COMMIT] = texts[_COMMIT] or f"{reading.split}/{origin}"  # a group of its own
                made = _pair(row, columns, own_id or origin, origin, texts, facts)
        except RowFault as fault:
            reading.bad(place, str(fault))
            continue
        if own_id:
            ids.add(own_id, place)
        for sample in made:
            if reading.keeps(sample.code):
                yield sample
    ids.refuse_duplicates()


def _layout(names: tuple[str, ...], columns: Columns, facts: ReadFacts) -> _Layout:
    fault = columns.missing(names)
    if fault:
        raise RowFault(fault)
    if len(facts.ignored_fields) < _MAX_LAYOUTS:
        facts.ignored_fields.update(set(names) - columns.known)
    present = [(index, name) for index, name in enumerate(columns.texts) if name in names]
    return _Layout([name for name in columns.ids if name in names], present)


def _function(row: dict[str, Any], columns: Columns) -> tuple[str, int]:
    """The code and target of a row."""
    assert columns.code is not None
    assert columns.target is not None
    code, target = row[columns.code], row[columns.target]
    if code.__class__ is not str:
        refuse(columns.code, code, "text")
    if not code.isascii():
        refuse_lone_surrogate(columns.code, code)
    if columns.labels:
        return code, _mapped(target, columns)
    if target.__class__ is not int or not 0 <= target <= 1:
        refuse(columns.target, target, "the integer 0 or 1 (else map it with data.labels)")
    return code, target


def _mapped(target: Any, columns: Columns) -> int:
    """The target that data.labels gives a label; JSON's true is the label "true"."""
    label = str(target).lower() if isinstance(target, bool) else str(target)
    if not isinstance(target, str | int | float) or label not in columns.labels:
        refuse(str(columns.target), target, f"one of data.labels {dict(columns.labels)}")
    return columns.labels[label]


def _pair(
    row: dict[str, Any],
    columns: Columns,
    own_id: str,
    origin: str,
    texts: list[str],
    facts: ReadFacts,
) -> list[CodeSample]:
    """The function before a fix and after it, in one group; none where the fix changed nothing."""
    assert columns.pair is not None
    before, after = (_side(row[name], name) for name in columns.pair)
    if before == after and before.strip():
        facts.num_identical += 1
        return []
    sides = (("before", before, 1, "VULNERABLE"), ("after", after, 0, "FIXED"))
    made = []
    for side, code, target, texts[_STATUS] in sides:
        made.append(CodeSample(f"{own_id}:{side}", code, target, f"{origin}:{side}", *texts))
    return made


def _side(code: Any, name: str) -> str:
    if code is None:  # a function that was added or removed
        return ""
    if not isinstance(code, str):
        refuse(name, code, "text")
    refuse_lone_surrogate(name, code)
    return code


def _own_id(row: dict[str, Any], layout: _Layout) -> str:
    for name in layout.ids:
        if text := plain_text(row[name], name):
            return text
    return ""


class Ids:
    """The ids a dataset states, 16 bytes each, whatever their length.

    Args:
        reading: Names the rows.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._hashes = array("q")  # two of 5 million ids share one with probability 1e-6
        self._places = array("q")

    def add(self, own_id: str, place: Place) -> None:
        """The id of the row at a place, which is a number."""
        self._hashes.append(hash(own_id))
        self._places.append(int(place))

    def refuse_duplicates(self) -> None:
        """Raises DataError if an id occurs twice: predictions would be ambiguous."""
        import numpy as np

        hashes, places = np.asarray(self._hashes), np.asarray(self._places)
        order = np.argsort(hashes, kind="stable")
        (twice,) = np.nonzero(hashes[order][1:] == hashes[order][:-1])
        if len(twice):
            first, second = places[order[twice[0]]], places[order[twice[0] + 1]]
            raise DataError(
                f"{self._reading.origin(int(second))}: has the id of"
                f" {self._reading.origin(int(first))}, as {len(twice)} rows have that of another;"
                " make ids unique, or name another column: data.fields={id: NAME}; where no row has"
                " that column, a row's place is its id"
            )
