"""Rows (place, {column: value}) -> records, with every value checked."""

import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from functools import lru_cache
from typing import Any

from data.errors import DataError
from data.kinds import FUNCTION, KINDS
from data.readers.columns import Columns, Found
from data.readers.conversations import document, messages, turns
from data.readers.formats import Rows
from data.readers.labels import label_names, weakness_names
from data.readers.reading import Place, Reading, RowFault, checked_text, plain_text, refuse
from data.records import CodeSample, Conversation, Document

Record = CodeSample | Conversation | Document
_Maker = Callable[[Mapping[str, Any], Found, str, str, Reading], list[Any]]
# How others write them: [not vulnerable, vulnerable].
_LABELS = (
    ("false", "true"), ("0", "1"), ("no", "yes"), ("safe", "vulnerable"), ("good", "bad"),
    ("fixed", "vulnerable"), ("non-vulnerable", "vulnerable"), ("not vulnerable", "vulnerable"),
)  # fmt: skip
_IDS = KINDS[FUNCTION].ids
_CWE = re.compile(r"\bcwe[-_ ]?0*(?=\d)(\d+)", re.IGNORECASE)
_MAX_LAYOUTS = 1000  # sets of columns remembered, and columns listed as ignored


def row_records(rows: Rows, columns: Columns, reading: Reading) -> Iterator[Record]:
    """Stream the records of rows; a bad row is counted or refused.

    Raises:
        DataError: More bad rows than data.max_bad_rows, or an id that occurs twice.
    """
    facts, ids = reading.facts, _Ids(reading)
    layouts: dict[tuple[str, ...], Found] = {}
    names: tuple[str, ...] | None = None
    for place, row in _unrolled(rows, reading) if reading.config.unroll else rows:
        facts.num_rows += 1
        try:
            if (here := tuple(row)) != names:
                found = layouts.get(here) or columns.find(here, reading.origin(place))
                if here not in layouts and len(facts.ignored_fields) < _MAX_LAYOUTS:
                    facts.ignored_fields.update(set(here) - found.known)
                if len(layouts) < _MAX_LAYOUTS:
                    layouts[here] = found
                make, names = _MAKERS[KINDS[found.kind].holds], here
            if found.splits:
                reading.refuse_held_out(row, found.splits, place)
            origin, own_id = reading.origin(place), _own_id(row, found)
            made = make(row, found, own_id or origin, origin, reading)
        except RowFault as fault:
            reading.bad(place, str(fault))
            continue
        if own_id:
            ids.add(own_id, place)
        yield from made
    ids.refuse_duplicates()
    if facts.num_identical > facts.num_rows / 2:
        facts.warn(
            f"{reading.name}: {facts.num_identical} of {facts.num_rows} rows are dropped, because"
            " their fix changed nothing; where a column says which functions are not vulnerable,"
            " map it to target beside before and after to keep them"
        )


def _unrolled(rows: Rows, reading: Reading) -> Rows:
    """The elements of the lists of data.unroll, each at its place within the row's."""
    for place, row in rows:
        try:
            parts = [row]
            for name in reading.config.unroll:
                parts = [each for part in parts for each in _elements(part, name)]
        except RowFault as fault:
            reading.bad_line(place, str(fault))
            continue
        reading.facts.num_empty += not parts
        reading.facts.num_rows += not parts
        origin = reading.origin(place)
        yield from ((f"{origin}.{number}", part) for number, part in enumerate(parts, 1))


def _elements(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects of a list with the fields around it but ids; none where there is no list."""
    around = {key: value for key, value in row.items() if key not in (name, *_IDS)}
    elements = row.get(name) or []
    elements = [elements] if isinstance(elements, dict) else elements
    if not isinstance(elements, list) or not all(isinstance(each, dict) for each in elements):
        refuse(name, elements, "a list of objects, because data.unroll names it")
    return [around | each for each in elements]


def _own_id(row: Mapping[str, Any], found: Found) -> str:
    for column in found.ids:
        if text := plain_text(row[column], column):
            return text
    return ""


def _functions(
    row: Mapping[str, Any], found: Found, record_id: str, origin: str, reading: Reading
) -> list[CodeSample]:
    """The function of a row, the two before and after a fix, or the two that are compared."""
    facts = {
        name: (_date if name == "date" else plain_text)(row[column], column)
        for name, column in found.optional.items()
    }
    if "cwe" in facts:
        facts["cwe"] = _weakness(facts["cwe"])
    if second := found.optional.get("code2"):
        facts["code2"] = checked_text(row[second], second)
    if "before" in found.needed:
        made = _pair(row, found, record_id, origin, facts, reading)
    else:
        column = found.needed["code"]
        code = checked_text(row[column], column)
        assert found.label is not None  # a row without a label is a pair
        target = _label_target(row[found.label], found.label, origin, reading)
        made = [CodeSample(record_id, code, target, origin, **facts)]
    if reading.config.target != "label":
        made = [_weak(sample, found, reading) for sample in made]
    return [
        sample
        for sample in made
        if reading.keeps(sample.code) and (not second or reading.keeps(sample.code2))
    ]


def _date(value: Any, column: str) -> str:
    """A date as text; tables hold some as a type of their own."""
    if isinstance(value, date):  # and datetime, which is one
        return value.isoformat()
    is_fraction = isinstance(value, float) and value % 1 > 0  # NaN is none
    return repr(value) if is_fraction else plain_text(value, column)


def _label_target(value: Any, column: str, origin: str, reading: Reading) -> int:
    """0 or 1, or the number of a label that data.labels maps to a name or leaves as it is."""
    if reading.is_binary:
        return _target(value, column, reading.config.labels)
    return reading.facts.labels.number(label_names(value, column, reading), origin)


def _weak(sample: CodeSample, found: Found, reading: Reading) -> CodeSample:
    """The same function, with the number of its weaknesses as its target."""
    wanted = reading.config.target
    if "cwe" not in found.optional:
        raise RowFault(f"data.target={wanted}: no field 'cwe'; name it: data.fields={{cwe: NAME}}")
    names = weakness_names(sample.target, sample.cwe, every=wanted == "cwes")
    return sample._replace(target=reading.facts.labels.number(names, sample.origin))


@lru_cache(1 << 12)
def _weakness(text: str) -> str:
    """The usual spelling of cwe-079 (SVEN) or CWE79 (Juliet)."""
    return _CWE.sub(r"CWE-\1", text)


def _label(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _target(value: Any, column: str, labels: Any) -> int:
    """The target of a label; of data.labels, JSON's true is the label "true"."""
    if isinstance(value, float) and value.is_integer() and _label(value) not in labels:
        value = int(value)  # pandas makes floats of a column with one gap
    if not labels:
        if value.__class__ is not int or not 0 <= value <= 1:
            refuse(column, value, f"the integer 0 or 1 ({_label_advice(value)})")
        return int(value)
    label = _label(value)
    if not isinstance(value, str | int | float) or label not in labels:
        refuse(column, value, f"one of data.labels {dict(labels)}{_if_missing(value)}")
    target: int = labels[label]
    return target


def _if_missing(value: Any) -> str:
    is_missing = value is None or value != value or value == ""
    return "; it is missing: remove the row, or raise data.max_bad_rows" if is_missing else ""


def _label_advice(value: Any) -> str:
    """What to do with a label that is neither 0 nor 1."""
    if missing := _if_missing(value):
        return f"data.labels maps others{missing}"
    if not isinstance(value, str | int | float):
        return "else map it with data.labels, or let data.labels=auto learn several at once"
    label = _label(value)
    usual = next((pair for pair in _LABELS if label.lower() in pair), None)
    spellings = (str.lower, str.upper, str.capitalize, str.title)
    spelling = next((spell for spell in spellings if spell(label) == label), None)
    no, yes = map(spelling, usual) if usual and spelling else (label[:20], "OTHER")
    return (
        f"""else map it with data.labels='{{"{no}": 0, "{yes}": 1}}'; data.labels=auto learns"""
        " more classes, called as in the file"
    )


def _pair(
    row: Mapping[str, Any],
    found: Found,
    record_id: str,
    origin: str,
    facts: dict[str, str],
    reading: Reading,
) -> list[CodeSample]:
    """The function before a fix and after it, in one group; none where the fix changed nothing.

    A row whose own label says that it is not vulnerable is one function.
    """
    # a side is null where the fix added or removed the function
    sides = {
        side: "" if row[column] is None else checked_text(row[column], column)
        for side, column in found.needed.items()
        if column != found.label
    }
    before, after = sides.values()
    if found.label is not None and not _target(
        row[found.label], found.label, reading.config.labels
    ):
        return [CodeSample(record_id, before or after, 0, origin, **facts)]
    if before == after and before.strip():
        reading.facts.num_identical += 1
        return []
    facts["commit"] = facts.get("commit") or f"{reading.split}/{origin}"  # a group of its own
    made = []
    for (side, code), target, status in zip(
        sides.items(), (1, 0), ("VULNERABLE", "FIXED"), strict=True
    ):
        names = facts | {"status": status}
        made.append(CodeSample(f"{record_id}:{side}", code, target, f"{origin}:{side}", **names))
    return made


# By what a kind holds: (row, columns, id, origin, reading) -> the records of the row.
_MAKERS: dict[str, _Maker] = {
    "function": _functions,
    "turns": turns,
    "messages": messages,
    "text": document,
}


class _Ids:
    """The ids a dataset states, 16 bytes each, whatever their length.

    Args:
        reading: Names the rows.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._hashes = array("q")  # two of 5 million ids share one with probability 1e-6
        self._places = array("q")

    def add(self, own_id: str, place: Place) -> None:
        """The id of the row at a place; of those that are no numbers only that they were there."""
        self._hashes.append(hash(own_id))
        self._places.append(place if isinstance(place, int) else -1)

    def refuse_duplicates(self) -> None:
        """Raises DataError if an id occurs twice: predictions would be ambiguous."""
        import numpy as np

        hashes, places = np.asarray(self._hashes), np.asarray(self._places)
        order = np.argsort(hashes, kind="stable")
        (twice,) = np.nonzero(hashes[order][1:] == hashes[order][:-1])
        if len(twice):
            pair = [int(place) for place in places[order[twice[0] : twice[0] + 2]]]
            first, second = (
                self._reading.origin("a file" if place < 0 else place) for place in pair
            )
            raise DataError(
                f"{second}: has the id of {first}, as {len(twice)} rows have that of another;"
                " make ids unique, or name another column: data.fields={id: NAME}; where no row has"
                " that column, a row's place is its id"
            )
