"""The robustness of a classifier as files and on the terminal: a table, a picture, a page."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.audit.markdown import fill
from data.text.escaping import print_text
from trainer.evaluation.figures import differences_svg
from trainer.evaluation.measures import with_interval
from trainer.evaluation.report import CONSTANT, print_table, table, write_files

_PAGE = Path(__file__).with_name("report.md.jinja")


def write_robustness_report(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write NAME_robustness.svg, .md and, last, .json into a folder; returns the JSON's content.

    Args:
        folder: Made where it is missing.
        content: Of the JSON, but for sentences and files. Numbers are rounded to six digits: what
            shares a batch changes later ones.
    """
    text = json.dumps(content, allow_nan=False, default=float)
    report = json.loads(text, parse_float=lambda number: round(float(number), 6))
    name = f"{report['split']}_robustness"
    report["files"] = {kind: f"{name}.{kind}" for kind in ("svg", "md", "json")}
    report["sentences"] = list(_sentences(report))
    page = fill(
        _PAGE,
        r=report,
        main=table(*_table(report)),
        left_out=table(*_left_out(report)),
        facts=table(["Fact", "Value"], report["facts"].items(), others_align="---"),
    )
    pages: dict[str, bytes | str] = {
        report["files"]["svg"]: _picture(report),
        report["files"]["md"]: page,
        report["files"]["json"]: json.dumps(report, indent=2, ensure_ascii=False) + "\n",
    }
    write_files(folder, pages)
    return dict(report)


def print_robustness(report: Mapping[str, Any]) -> None:
    """Print the table and what it says."""
    console = print_table(f"Robustness on {report['split']}", *_table(report))
    print_text(console, report["sentences"])


def _table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for key, one in report["transformations"].items():
        cells = ["-"] * 5
        if one["num"]:
            both = (with_interval(one[key], None, ".3f") for key in ("auc_before", "auc_after"))
            cells = [
                f"{one['mean_absolute_shift']:.3f}",
                f"{one['largest_shift']:.3f}",
                with_interval(one["flip_rate"], one["flip_interval"], ".1%"),
                " -> ".join(both),
                with_interval(one["auc_difference"], one["auc_interval"], "+.3f"),
            ]
        rows.append([key, f"{one['num']} of {report['num']}", *cells])
    shifts = ["functions", "mean shift", "largest", "other answers", "ROC AUC", "difference"]
    return ["Changed", *shifts], rows


def _left_out(report: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    rows = {key: one["left_out"] for key, one in report["transformations"].items()}
    reasons = next(iter(rows.values()))
    return ["Changed", *reasons], [[key, *one.values()] for key, one in rows.items()]


def _sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers say."""
    measured = {key: one for key, one in report["transformations"].items() if one["num"]}
    if report["largest_answer"] > CONSTANT:
        yield (
            f"{report['largest_answer']:.0%} of the functions have the same answer, so that few"
            " answers change says little: look at the shifts"
        )
    if not measured:
        yield "no function could be changed; the page says why"
    for key, one in measured.items():
        low, high = one["auc_interval"] or (0.0, 0.0)
        if not low <= 0 <= high:
            both = f"{one['auc_before']:.3f} to {one['auc_after']:.3f}"
            yield f"{key}: ROC AUC {'rises' if low > 0 else 'falls'} from {both}"
    if pairs := report["pairs"]:
        yield from _of_pairs(pairs)


def _of_pairs(pairs: Mapping[str, Any]) -> Iterator[str]:
    """Whether scores follow how much a fix edits, or what it does."""

    def side(key: str, middle: float) -> int:
        """Where an interval lies: 1 above the middle, -1 below, 0 around it."""
        low, high = pairs[f"{key}_interval"] or (middle, middle)
        return (low > middle) - (high < middle)

    known, moved = side("auc", 0.5), side("spearman", 0.0)
    verdict = ("does not tell them apart", "tells them apart", "prefers the fix")[known]
    yield (
        f"in {with_interval(pairs['auc'], pairs['auc_interval'], '.1%')} of {pairs['num']} pairs"
        f" the vulnerable function has a higher score than its fix: the model {verdict}"
    )
    if pairs["spearman"] is not None:
        rho = with_interval(pairs["spearman"], pairs["spearman_interval"], "+.2f")
        how = ("as much where", "more where", "less where")[moved]
        what = ": they follow how much is edited" + (", not the fix", " too")[known > 0]
        yield (
            f"scores of a pair differ {how} its texts differ more (Spearman {rho})"
            f"{what if moved > 0 else ''}"
        )


def _picture(report: Mapping[str, Any]) -> bytes:
    """Other answers and the change of ROC AUC, with their intervals."""
    rows = [(key, one) for key, one in report["transformations"].items() if one["num"]]
    points = {
        title: [(key, one[name], one[ends]) for key, one in rows if one[name] is not None]
        for title, name, ends in (
            ("other answers", "flip_rate", "flip_interval"),
            ("ROC AUC, after - before", "auc_difference", "auc_interval"),
        )
    }
    return differences_svg(f"Robustness on {report['split']}", points)
