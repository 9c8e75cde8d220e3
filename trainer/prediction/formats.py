"""A report as text, JSON, lines of JSON, CSV or a page of HTML; SARIF is in sarif.py."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any

from data.text.escaping import csv_value, escaped, print_text
from trainer.evaluation.page.html import page_template
from trainer.prediction.extraction import MOST_BYTES
from trainer.prediction.ranked import ScoredFunction
from trainer.prediction.report import Report

_TEXT_ROWS, _PAGE_ROWS = 20, 500  # without --top
_MOST_LINES = 60  # of a function on a page
_WIDTH = 160  # of a table that is not on a terminal
_PAGE = Path(__file__).with_name("page.html.jinja")
_COLUMNS = (
    *("rank", "file", "line", "end_line", "function", "language", "score", "probability"),
    *("answer", "num_tokens", "is_suppressed", "fingerprint"),
)


def write_text(report: Report, stream: IO[str]) -> None:
    """Facts and a table of the most probable functions."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    console.print("focaltune: functions by rank")
    if not console.is_terminal:
        console.width = _WIDTH
    rows = [one for one in islice(report.ranked, report.top or _TEXT_ROWS) if not one.is_suppressed]
    table = Table()
    for column in ("probability", "found", "function", "place", "language"):
        table.add_column(
            column, overflow="fold", justify="right" if column == "probability" else "left"
        )
    for one in rows:
        place = f"{one.file}:{one.line}"
        cells = (f"{one.probability:.3f}", ", ".join(one.answer), one.function, place, one.language)
        table.add_row(*(Text(escaped(cell)) for cell in cells))
    lines = report.lines()
    width = max(len(word) for word, _ in lines)
    for word, said in lines:
        print_text(console, [f"{word:{width}}  {said}"])
    if rows:
        console.print(table)
    if (left := len(report.ranked) - len(rows)) > 0:
        console.print(f"{left:,} more functions; --top N shows more, --format csv writes all")


def write_json(report: Report, stream: IO[str]) -> None:
    """One object: the facts, and under `functions` the functions by rank."""
    head = json.dumps({"focaltune": report.facts()}, indent=1)
    stream.write(head.removesuffix("\n}") + ',\n "functions": [')
    for place, row in enumerate(_rows(report)):
        stream.write(f"{',' if place else ''}\n  {json.dumps(row)}")
    stream.write("\n ]\n}\n")


def write_jsonl(report: Report, stream: IO[str]) -> None:
    """A function a line, by rank."""
    for row in _rows(report):
        stream.write(json.dumps(row) + "\n")


def write_csv(report: Report, stream: IO[str]) -> None:
    """A function a row, by rank; no cell is a formula."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in _rows(report):
        row["answer"] = "; ".join(row["answer"])
        writer.writerow([csv_value(row[column]) for column in _COLUMNS])


def write_html(report: Report, stream: IO[str]) -> None:
    """One page with all that it needs in it; it makes no request."""
    rows = islice(report.ranked, report.top or _PAGE_ROWS)
    listed = ({"one": one, "code": _code(report, one)} for one in rows)
    left = max(0, len(report.ranked) - (report.top or _PAGE_ROWS))
    page = page_template(_PAGE)
    for piece in page.generate(lines=report.lines(), rows=listed, left=left):
        stream.write(piece)


def _rows(report: Report) -> Iterator[dict[str, Any]]:
    return ({"rank": rank, **asdict(one)} for rank, one in enumerate(report.rows(), start=1))


def _code(report: Report, one: ScoredFunction) -> str:
    """The first lines of a function, as the file has them now."""
    try:
        with (report.root / one.file).open("rb") as stream:
            lines = stream.read(MOST_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    last = min(one.end_line, one.line + _MOST_LINES - 1)
    more = ["..."] if last < one.end_line else []
    return "\n".join([*lines[one.line - 1 : last], *more]).replace("\r", "")


FORMATS: dict[str, Callable[[Report, IO[str]], None]] = {
    "text": write_text,
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "html": write_html,
}
