"""The results of a suite as files and on the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.audit.figure import COLOURS, svg
from data.audit.markdown import fill
from data.text.escaping import print_text
from trainer.evaluation.figures import panels
from trainer.evaluation.measures import with_interval
from trainer.evaluation.report import print_table, table, write_files
from trainer.evaluation.suites.suite import Result, Suite

_PAGE = Path(__file__).with_name("report.md.jinja")


def write_suite_report(
    folder: Path, name: str, suite: Suite, results: Sequence[Result], facts: Mapping[str, Any]
) -> Path:
    """Write suite.svg, .md and, last, .json; print the table; returns the JSON's path."""
    content: dict[str, Any] = {"suite": name, "title": suite.title, "facts": facts, "left_out": 0}
    content |= suite.summary(results)
    header, rows = _table(content)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    page = fill(
        _PAGE,
        r=content,
        main=table(header, rows),
        counts=table(["Verdict", "Outputs"], content["counts"].items()),
        facts=table(["Fact", "Value"], content["facts"].items(), others_align="---"),
    )
    write_files(folder, {"suite.svg": _picture(content), "suite.md": page, "suite.json": text})
    console = print_table(f"{name}: {suite.title}", header, rows)
    counted = ", ".join(f"{num:,} {what}" for what, num in content["counts"].items())
    print_text(console, [f"outputs: {counted}", f"report: {folder / 'suite.md'}"])
    return folder / "suite.json"


def _table(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, with_interval(one["value"], one["interval"], ".2f")]
        for name, one in content["measures"].items()
    ]
    return ["Measure", "Percent"], rows


def _picture(content: Mapping[str, Any]) -> bytes:
    """A bar for each measure, with its interval."""
    measures = content["measures"]
    figure, (axis,) = panels(1, 4.3, 1.2 + 0.5 * max(1, len(measures)))
    for place, one in enumerate(measures.values()):
        axis.barh(place, one["value"], color=COLOURS[0], height=0.5)
        if one["interval"]:
            axis.plot(one["interval"], [place, place], color=COLOURS[1], linewidth=2)
    axis.set(xlim=(0, 100), ylim=(len(measures) - 0.5, -0.5), xlabel="percent")
    axis.set_yticks(range(len(measures)), list(measures))
    figure.suptitle(content["title"])
    return svg(figure)
