"""Labels beyond 0 and 1: names of classes, several at once, weaknesses."""

import json
import re
from collections.abc import Mapping
from typing import Any

from data.readers.reading import Reading, RowFault, plain_text, refuse
from data.text.labels import OTHER, VULNERABLE, Names

_CWE = re.compile(r"CWE-?\d+", re.IGNORECASE)


def label_names(value: Any, column: str, reading: Reading) -> Names:
    """The names of the classes of a function: one, or of a list any number.

    A list holds names, or a 0 or 1 for each class; a split has one kind of them.

    Args:
        value: Of the label's column; JSON's list may be text.
        column: Its name.
        reading: Its config maps labels.

    Raises:
        RowFault: It is none of these, or a name that data.labels lacks.
    """
    met = reading.facts.labels
    if isinstance(value, str) and value[:1] == "[":
        try:
            value = json.loads(value if '"' in value else value.replace("'", '"'))
        except (ValueError, RecursionError):
            refuse(column, value, "a label, or a list of labels as JSON or Python writes it")
    if not isinstance(value, list):
        return (_name(value, column, reading),)
    is_row_of_bits = len(value) > 1 and all(
        isinstance(one, int | float) and one in (0, 1) for one in value
    )
    if met.width is None:
        met.width = len(value) if is_row_of_bits else 0 if value else None
    if not met.width:
        return tuple(sorted({_name(one, column, reading) for one in value}))
    if len(value) != met.width or not is_row_of_bits:
        refuse(column, value, f"a 0 or 1 for each of {met.width} classes, as in rows before it")
    names = met.fixed or [str(n) for n in range(met.width)]
    if len(names) != met.width:
        refuse(column, value, f"a 0 or 1 for each of {len(names)} classes of data.labels")
    return tuple(sorted(name for name, one in zip(names, value, strict=True) if one))


def weakness_names(target: int, cwe: str, *, every: bool) -> Names:
    """The weaknesses of a function; of a vulnerable one that names none, OTHER."""
    if not target:
        return () if every else (VULNERABLE[0],)
    found = {f"CWE-{int(text.upper().strip('CWE-'))}" for text in _CWE.findall(cwe)}
    return tuple(sorted(found)) or (OTHER,)


def class_name(label: str, labels: Mapping[str, int | str], reading: Reading) -> str:
    """The class that a label is mapped to; without a map the label itself."""
    ours = labels.get(label, label)
    return reading.facts.labels.fixed[ours] if isinstance(ours, int) else ours


def _name(value: Any, column: str, reading: Reading) -> str:
    text = str(value).lower() if isinstance(value, bool) else plain_text(value, column)
    if not text:
        raise RowFault(f"{column!r} is missing: remove the row, or raise data.max_bad_rows")
    labels = reading.config.labels
    if not isinstance(labels, dict):
        return text
    if text not in labels:
        refuse(column, value, f"one of data.labels {labels}")
    return class_name(text, labels, reading)
