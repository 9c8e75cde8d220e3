"""Rows of a suite's data file, and released outputs, read from where the user put them."""

import gzip
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from data.errors import DataError, parsing
from trainer.evaluation.suites.suite import Item, Suite

_MOST_BYTES = 1 << 30  # of a file, decompressed; the largest release has 5 MB
_MOST_FIRST = 16 << 20  # of the row that shows what a file is
_REMEDY = "docs/suites.md says where the data of each suite come from"
_HUMANEVAL = {"task_id", "prompt", "canonical_solution", "test", "entry_point"}
_PACK = {*_HUMANEVAL, "buggy_solution"}
_PACK_LANGUAGES = {
    "Python": "python", "Java": "java", "JavaScript": "js", "Go": "go", "Rust": "rust", "CPP": "cpp"
}  # fmt: skip
_DIVERSITY = {"DoP", "DoD"}  # scenarios of prompts and hardware, which the study leaves out
SHAPES: dict[str, set[str]] = {
    **{f"humanevalpack-{language}": _PACK for language in _PACK_LANGUAGES.values()},
    "recode": {*_HUMANEVAL, "seed", "perturbed"},
    "humaneval": _HUMANEVAL,
    "aatk": {"scenario_id", "prompt", "suffix", "check_ql"},
    "defect": {"func", "target"},
    "clone": {"func1", "func2", "label"},
}
"""Columns by which the rows of a suite are known; a pack says its language in task_id."""
_ID = ("task_id", "scenario_id", "id", "idx", "row")
_OUTPUT = ("output", "completion", "generation", "raw_text")


def shape_of(row: Mapping[str, Any]) -> str | None:
    """The first key of SHAPES that a row fits, else None."""
    if str(row.get("scenario_id")).partition("/")[0] in _DIVERSITY:
        return None
    prefix = str(row.get("task_id")).partition("/")[0]
    for shape, columns in SHAPES.items():
        pack = shape.removeprefix("humanevalpack-")
        if columns <= set(row) and (pack == shape or _PACK_LANGUAGES.get(prefix) == pack):
            return shape
    return None


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if is_gzip else path.open("rb")


def rows_of(path: Path) -> list[Any]:
    """What a JSON list or a file of JSON lines holds, gzipped or not.

    Raises:
        DataError: It is too long, or not JSON.
    """
    with parsing(f"{path} cannot be read", DataError, _REMEDY), _opened(path) as stream:
        raw = stream.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise DataError(f"{path}: above {_MOST_BYTES:,} bytes; {_REMEDY}")
    with parsing(f"{path}: not JSON, nor JSON lines in UTF-8", DataError, _REMEDY):
        text = raw.decode("utf-8")
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def first_shape(path: Path) -> str | None:
    """The shape of a file by its first row; None where it is no file of a suite."""
    try:
        if tarfile.is_tarfile(path):
            return _shape_of_archive(path)
        with _opened(path) as stream:
            return _shape_of_line(stream.readline(_MOST_FIRST))
    except (ValueError, OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error):
        return None


def _shape_of_archive(path: Path) -> str | None:
    """Only ReCode comes as an archive, of files whose rows are also those of HumanEval."""
    with tarfile.open(path) as archive:
        for member in islice(archive, 16):
            if member.name.endswith(".jsonl") and (stream := archive.extractfile(member)):
                is_one = _shape_of_line(stream.readline(_MOST_FIRST)) in ("humaneval", "recode")
                return "recode" if is_one else None
    return None


def _shape_of_line(line: bytes) -> str | None:
    row = json.loads(line)
    return shape_of(row) if isinstance(row, dict) else None


def suite_items(suite: Suite, data: Path) -> list[Item]:
    """All rows of a suite's data, from its file, or from the one in a folder that has its columns.

    Raises:
        DataError: No file or several fit, a row lacks a column, or an id stands twice.
    """
    if suite.read is not None:
        return suite.read(data)
    files = [data] if data.is_file() else sorted(data.rglob("*.jsonl*"))
    fitting = [path for path in files if first_shape(path) == suite.shape]
    if len(fitting) != 1:
        found = ", ".join(map(str, fitting)) or f"none of {len(files)}"
        columns = ", ".join(sorted(SHAPES[suite.shape]))
        raise DataError(
            f"--data {data}: {suite.title} needs one file of JSON lines with {columns};"
            f" found {found}; give that file itself. {_REMEDY}"
        )
    items, seen = [], set()
    for place, row in enumerate(rows_of(fitting[0])):
        where = f"{fitting[0]}: row {place + 1}"
        if not isinstance(row, dict) or shape_of(row) != suite.shape:
            raise DataError(f"{where} has other columns than the first one; {_REMEDY}")
        name = next((str(row[key]) for key in _ID if key in row), str(place))
        if name in seen:
            raise DataError(f"{where}: {name} stands twice; {_REMEDY}")
        seen.add(name)
        items.append(Item(name, row, place))
    return items


def given_outputs(path: Path, items: Sequence[Item]) -> dict[str, list[str]]:
    """Released outputs by the id of their item.

    A list holds one list for each row of the data, in their order, of texts or of objects with
    raw_text or completion. JSON lines, or a list of objects, name the item by task_id, scenario_id
    or id, and hold output, completion, generation or raw_text: a text or several.

    Raises:
        DataError: It is neither, an item has no output, or it is for other data.
    """
    rows = rows_of(path)
    found: dict[str, list[str]] = {}
    by_place = all(isinstance(row, list) for row in rows)
    placed = items
    if by_place and len(rows) < len(items):
        placed = [item for item in items if not item.is_extra]
    if by_place and len(rows) != len(placed):
        raise DataError(f"{path} holds {len(rows)} lists of outputs, the data {len(items)} rows")
    for place, row in enumerate(rows):
        where = f"{path}: entry {place + 1}"
        if by_place:
            name, texts = placed[place].id, row
        else:
            name = next((str(row[key]) for key in _ID if key in row), "") if row else ""
            texts = [next((row[key] for key in _OUTPUT if key in row), None)] if name else []
        texts = list(_texts(texts, where))
        if not texts or not name:
            raise DataError(f"{where}: needs one of {', '.join(_ID)} and one of {_OUTPUT}")
        found.setdefault(name, []).extend(texts)
    strange = sorted(set(found) - {item.id for item in items})
    if strange:
        raise DataError(f"{path}: {strange[0]} is not an item of the data")
    return found


def _texts(values: Any, where: str) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from _texts(value, where)
            continue
        text = value
        if isinstance(value, dict):  # of the study: an answer, or a completion of a scenario
            text = value.get("raw_text", value.get("completion"))
        if not isinstance(text, str):
            raise DataError(f"{where}: an output must be a text, found {str(value)[:40]!r}")
        yield text
