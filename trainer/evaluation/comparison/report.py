"""The comparison as files and on the terminal: one table, one picture, one page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.audit.markdown import fill
from data.text.escaping import print_text
from trainer.evaluation.figures import curves_svg, differences_svg
from trainer.evaluation.measures import shown_measures, with_interval
from trainer.evaluation.page.page import write_page
from trainer.evaluation.report import print_table, table, write_files
from trainer.run_folder.folder import LOG
from trainer.run_folder.metrics import curve, read_log

_PAGE = Path(__file__).with_name("report.md.jinja")
_MOST_LISTED = 30  # functions that changed sides, on the page; compare.json has all


def write_comparison(folder: Path, content: Mapping[str, Any]) -> None:
    """Write compare.svg, .md, .json and index.html; print the table.

    Args:
        folder: Made where it is missing.
        content: Of compare.json.
    """
    header, rows = _table(content)
    sentences = [_sentence(one) for one in content["differences"] if "mcnemar" in one]
    pictures = ({"compare.svg": _picture(content)} if content["differences"] else {}) | {
        f"compare_{kind}.svg": drawn
        for kind, title in (("train", "Training loss"), ("valid", "Validation loss"))
        if (drawn := _curves(content, kind, title))
    }
    contents: dict[str, bytes | str] = {
        **pictures,
        "compare.md": fill(
            _PAGE,
            c=content,
            pictures=pictures,
            main=table(header, rows),
            details=table(*_table(content, details=True)),
            has_details=bool(shown_measures(content["measured"], details=True)),
            settings=table(*_settings(content), others_align="---"),
            sentences=sentences,
            most=_MOST_LISTED,
        ),
        "compare.json": json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_files(folder, contents)
    page = write_page(folder, ", ".join(group["title"] for group in content["groups"]))
    console = print_table(f"Comparison on {content['split']}", header, rows)
    covers = "brackets cover which functions or texts were drawn for the test set, not other seeds"
    missing = [f"not compared: {what} ({why})" for what, why in content["not_compared"].items()]
    print_text(console, [covers, *sentences, *missing, f"comparison: {page}"])


def _table(
    content: Mapping[str, Any], *, details: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Every group, then each minus the first; several seeds have a row for mean and spread."""
    measures = shown_measures(content["measured"], details=details)
    rows = []
    for group in content["groups"]:
        title, num = group["title"], len(group["runs"])
        if num > 1:
            cells = [
                f"{measure.text(group['mean'][key])} ± {measure.text(group['sd'][key])}"
                if key in group["mean"]
                else measure.text(None)
                for key, measure in measures.items()
            ]
            rows.append([f"{title}: mean ± sd, n = {num}", *cells])
            title = f"{group['letter']}: scores averaged"
        values, ends = group["averaged"], group["intervals"]
        rows.append([title, *(m.text(values[key], ends.get(key)) for key, m in measures.items())])
    for one in content["differences"]:
        cells = [
            with_interval(found["difference"], found["interval"], f"+.{measure.digits}f")
            for key, measure in measures.items()
            for found in [one["measures"][key]]
        ]
        rows.append([f"{one['other']} - {one['first']}", *cells])
    return ["Runs", *(measure.heading for measure in measures.values())], rows


def _sentence(one: Mapping[str, Any]) -> str:
    """McNemar's test and who changed sides, in one line."""
    test, first, other = one["mcnemar"], one["first"], one["other"]
    return (
        f"{other} against {first}: {test['only_other_right']} right by {other} alone,"
        f" {test['only_first_right']} by {first} alone (McNemar, exact: p = {test['p']:.3g});"
        f" {len(one['changed'])} changed sides"
    )


def _settings(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Settings that differ, a column for each group."""
    letters = [group["letter"] for group in content["groups"]]
    rows = [
        [key, *(value if isinstance(value, str) else json.dumps(value) for value in values)]
        for key, values in content["settings"].items()
    ]
    return ["Setting", *letters], rows


def _curves(content: Mapping[str, Any], kind: str, title: str) -> bytes | None:
    """A loss over steps of every run that has logged it."""
    curves = {
        f"{group['letter']}: {run['name']}": curve(
            read_log(Path(run["folder"]) / LOG, kind), "loss"
        )
        for group in content["groups"]
        for run in group["runs"]
    }
    drawn = {name: points for name, points in curves.items() if points}
    return curves_svg(title, "loss", drawn) if drawn else None


def _picture(content: Mapping[str, Any]) -> bytes:
    """Each group minus the first, by measure."""
    measures = shown_measures(content["measured"])
    points = {
        measure.heading: [
            (f"{one['other']} - {one['first']}", found["difference"], found["interval"])
            for one in content["differences"]
            if (found := one["measures"][key])["difference"] is not None
        ]
        for key, measure in measures.items()
    }
    return differences_svg(f"Differences on {content['split']}", points)
