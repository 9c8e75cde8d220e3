"""What every report shares: tables as Markdown and in a terminal, and files written whole."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.audit.markdown import cell

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.console import Console

_FILE_WIDTH = 132  # characters


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], others_align: str = "---:"
) -> "Markup":
    """A Markdown table, safe in a template; the first column is aligned left."""
    from markupsafe import Markup

    rule = ["---", *[others_align] * (len(header) - 1)]
    lines = [header, rule, *([cell(value) for value in row] for row in rows)]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))


def facts_table(facts: Mapping[str, Any]) -> "Markup":
    """What the numbers of a report rest on, one fact a row."""
    rows = [
        [key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for key, value in facts.items()
    ]
    return table(["Fact", "Value"], rows, others_align="---")


def print_report(
    report: Mapping[str, Any],
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    console: "Console | None" = None,
) -> None:
    """Print the table of a report's predictors, and how the model compares."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    if not console.is_terminal:  # a file or a pipe has no width: a row then stays on one line
        console.width = max(console.width, _FILE_WIDTH)
    shown = Table(title=f"Evaluation on {report['split']}")
    for place, column in enumerate(header):
        shown.add_column(column, justify="right" if place else "left")
    for row in rows:
        shown.add_row(*map(escape, row))
    console.print(shown)
    if report["comparison"] is not None:
        console.print(f"The model is {report['comparison']['verdict']}.")


def json_text(report: Mapping[str, Any]) -> str:
    """A report as JSON, indented.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_files(folder: Path, contents: Mapping[str, bytes | str]) -> None:
    """Write files by name in this order, each whole or not at all; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        # A model's answer may hold half of a character, which UTF-8 has no bytes for.
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(raw)
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)
