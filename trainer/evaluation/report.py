"""The report writer: tables, a page made by a template, and every file written whole.

A report is a dict: `split`, `predictors`, `comparison`, `facts`, `files`, and more for the page of
its kind. It is written as JSON.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.audit.markdown import fill
from data.text.escaping import markdown
from trainer.evaluation.measures import shown_measures

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.console import Console

CONSTANT = 0.9  # share of functions with one answer, above which a report says so
MODEL = "model"  # the predictor that the others are compared with
_FILE_WIDTH = 132  # characters


def file_names(name: str, *pictures: str, **others: str) -> dict[str, str]:
    """The files of a report by what they hold, in the order in which they are written."""
    drawn = {picture: f"{name}_{picture}.svg" for picture in pictures}
    return drawn | others | {"markdown": f"{name}.md", "json": f"{name}.json"}


def predictions_name(name: str) -> str:
    """The file of a split's predictions."""
    return "predictions.jsonl" if name == "test" else f"{name}_predictions.jsonl"


def write_report(
    folder: Path,
    report: Mapping[str, Any],
    template: Path,
    contents: Mapping[str, bytes | str],
    **parts: Any,
) -> None:
    """Write the files of a report; its JSON comes last, so its presence says that all are there.

    Args:
        report: Content of the JSON.
        template: Makes the page from `r`, the report, and the tables `predictors` and `facts`.
        contents: Every other file, by its key in report["files"].
        parts: More values for the template.

    Raises:
        ValueError: A number of the report is not finite; nothing is written.
    """
    page = fill(
        template,
        r=report,
        predictors=table(*predictor_rows(report)),
        facts=_facts_table(report["facts"]),
        **parts,
    )
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    all_contents = {**contents, "markdown": page, "json": text}
    write_files(folder, {report["files"][key]: content for key, content in all_contents.items()})


def predictor_rows(
    report: Mapping[str, Any], *, details: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of predictors: a name, then "value [low, high]" by measure.

    `details`: the second table, of the measures that are not in logs.
    """
    is_classified = "metrics" in report["predictors"][MODEL]
    usual = "functions" if is_classified else "tokens"
    measures = shown_measures(report.get("measured", usual), details=details)
    rows = []
    for name, predictor in report["predictors"].items():
        values, intervals = predictor.get("metrics", predictor), intervals_of(predictor)
        texts = [
            measure.text(values[key], intervals.get(key)) if key in values else "-"
            for key, measure in measures.items()
        ]
        rows.append([name, *texts])
    return ["Predictor", *(measure.heading for measure in measures.values())], rows


def intervals_of(predictor: Mapping[str, Any]) -> Mapping[str, Sequence[float] | None]:
    """The intervals of a predictor by measure; a language model has one for its loss only."""
    found: Mapping[str, Sequence[float] | None] = predictor.get(
        "intervals", {"loss": predictor.get("interval")}
    )
    return found


def print_report(report: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print the table of a report's predictors, and how the model compares."""
    from rich.markup import escape

    console = _wide(console)
    if report.get("warning"):
        console.print(f"[bold]Warning:[/bold] {escape(report['warning'])}.", highlight=False)
    print_table(f"Evaluation on {report['split']}", *predictor_rows(report), console)
    for compared in filter(None, (report["comparison"], report.get("shortcut"))):
        console.print(f"The model is {escape(compared['verdict'])}.", highlight=False)
    if use := report.get("in_use"):
        rarest, what = use[-1], report.get("classes", ["", "vulnerable"])[1]
        console.print(
            f"In 1,000 functions of which {1000 * rarest['share']:.0f} are {escape(what)}:"
            f" {rarest['alarms']:.0f} alarms, {rarest['true']:.0f} of them true.",
            highlight=False,
        )


def print_table(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    console: "Console | None" = None,
) -> "Console":
    """Print a table, its first column to the left; returns the console."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    console, rows = _wide(console), list(rows)
    shown = Table(title=escape(title))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if sum(widths) + 3 * len(widths) + 1 > console.width:  # intervals go under their values
        shown = Table(title=escape(title), box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 0))
        rows = [[re.sub(r" (?=\[|-> )", "\n", cell) for cell in row] for row in rows]
    for place, column in enumerate(header):
        shown.add_column(escape(column), justify="right" if place else "left")
    for row in rows:
        shown.add_row(*map(escape, row))
    console.print(shown, highlight=False)
    return console


def _wide(console: "Console | None") -> "Console":
    """A console; in a file or a pipe, which have no width, a row stays on one line."""
    from rich.console import Console

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    return console


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], others_align: str = "---:"
) -> "Markup":
    """A Markdown table, safe in a template; the first column is aligned left."""
    from markupsafe import Markup

    rule = ["---", *[others_align] * (len(header) - 1)]
    lines = [header, rule, *([markdown(value) for value in row] for row in rows)]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))


def write_files(folder: Path, contents: Mapping[str, bytes | str]) -> None:
    """Write files by name in this order, each whole or not at all; the folder is made."""
    folder.mkdir(exist_ok=True)  # a run folder that was removed is not made again
    for name, content in contents.items():
        # A model's answer may hold half of a character, which UTF-8 has no bytes for.
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(raw)
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)


def _facts_table(facts: Mapping[str, Any]) -> "Markup":
    """The facts behind the numbers of a report, one in each row."""
    rows = [
        [key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for key, value in facts.items()
    ]
    return table(["Fact", "Value"], rows, others_align="---")
