"""The evaluation report as Markdown: text from the report's JSON, no computation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = {"roc_auc": "ROC AUC", "pr_auc": "PR AUC", "f1": "F1", "mcc": "MCC"}


def render(report: Mapping[str, Any]) -> str:
    """Write the report that `report.write_report` returned as one Markdown page."""
    parts = [
        f"# Evaluation on {_cell(report['split'])}",
        _population(report),
        "## Predictors",
        table(["Predictor", *COLUMNS.values()], predictor_rows(report)),
        _method(report),
        _comparison(report),
        "## Confusion matrix of the model",
        _confusion(report),
        "## By CWE",
        _by_cwe(report["by_cwe"]),
        "## Curves",
        f"![ROC curves]({report['files']['roc']})",
        f"![Precision-recall curves]({report['files']['pr']})",
        "## Facts",
        facts_table(report["facts"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def predictor_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """One row per predictor: its name, then "value [low, high]" for each of COLUMNS."""
    return [
        [name, *(_value(predictor, metric) for metric in COLUMNS)]
        for name, predictor in report["predictors"].items()
    ]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], others_align: str = "---:") -> str:
    """Format a Markdown table; the first column is aligned left, the others right."""
    rule = ["---", *[others_align] * (len(header) - 1)]
    lines = [header, rule, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _population(report: Mapping[str, Any]) -> str:
    population = report["population"]
    num, num_positive = population["num"], population["num_positive"]
    num_dropped = population["num_scored_by_prior"]
    text = (
        f"{num} functions, {num_positive} vulnerable ({num_positive / num:.1%}), in "
        f"{population['num_groups']} groups (a commit each, or a function that has none)."
    )
    num_left_out = report["facts"].get("num_left_out", 0)
    if report["facts"].get("compat_population"):
        text += (
            f" **{num_left_out} dropped functions are left out** (eval.compat_population), so these"
            " numbers compare with other work that did the same, not with the whole split."
        )
    if not num_dropped:
        return f"{text} The model scored every one of them."
    return f"{text} Dropped before the model saw them, and scored by the prior: {num_dropped}."


def _method(report: Mapping[str, Any]) -> str:
    bootstrap, threshold = report["bootstrap"], report["threshold"]
    decision = (
        f"The model says vulnerable at a score of {threshold:.4g} or more; its source: "
        f"{report['threshold_source']}."
    )
    intervals = "No interval is given: one class or one group only leaves nothing to resample."
    if report["predictors"]["model"]["intervals"]:
        intervals = (
            f"Brackets hold the {bootstrap['level']:.0%} percentile bootstrap interval: "
            f"{bootstrap['num_resamples']} resamples of whole groups at a fixed threshold "
            f"(seed {bootstrap['seed']}; {bootstrap['num_redrawn']} draws held one class and were "
            f"drawn again)."
        )
    convention = "MCC is 0 by convention where a predictor gives a single answer."
    return f"{decision} {intervals} {convention}"


def _comparison(report: Mapping[str, Any]) -> str:
    comparison = report["comparison"]
    if comparison is None:
        return ""
    low, high = comparison["interval"]
    overlap = "overlap" if comparison["separate_intervals_overlap"] else "do not overlap"
    return (
        f"**The model is {comparison['verdict']}.** ROC AUC, model - {comparison['baseline']}: "
        f"{comparison['auc_difference']:+.3f} [{low:+.3f}, {high:+.3f}], both scored on the same "
        f"resamples. The two separate intervals {overlap}; the paired difference decides."
    )


def _confusion(report: Mapping[str, Any]) -> str:
    m = report["predictors"]["model"]["metrics"]
    return table(
        ["", "predicted safe", "predicted vulnerable"],
        [["safe", str(m["tn"]), str(m["fp"])], ["vulnerable", str(m["fn"]), str(m["tp"])]],
    )


def _by_cwe(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["CWE", "functions", "vulnerable", "recall", "precision", "F1"]
    cells = [
        [
            row["cwe"] or "(none)",
            str(row["num"]),
            str(row["num_positive"]),
            *(_number(row[name]) for name in ("recall", "precision", "f1")),
        ]
        for row in rows
    ]
    note = (
        "The model at its threshold. Recall needs a vulnerable function, precision and F1 need "
        'functions of both classes; "-" where a CWE has none.'
    )
    return f"{table(header, cells)}\n\n{note}"


def facts_table(facts: Mapping[str, Any]) -> str:
    """What a report's numbers rest on, a row each."""
    rows = [[key, _text(value)] for key, value in facts.items()]
    return table(["Fact", "Value"], rows, others_align="---")


def _value(predictor: Mapping[str, Any], metric: str) -> str:
    value, interval = predictor["metrics"][metric], predictor["intervals"].get(metric)
    if value is None:
        return "undefined"
    if interval is None:
        return f"{value:.3f} -"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    # A pipe or a line break would end the cell; a commit message or a file name may hold either.
    return " ".join(text.replace("|", "\\|").split())
