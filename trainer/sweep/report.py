"""The report of a sweep: a page, a row for each cell, and pictures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.evaluation.page import table, write_files
from trainer.sweep import pictures
from trainer.sweep.answer import answer_lines, limit_lines
from trainer.sweep.findings import Comparison, Order, front_of
from trainer.sweep.results import Result
from trainer.sweep.running import Failure

_COLUMNS = (
    "method", "model", "seed", "num_base", "num_trained", "num_parameters", "trained_share",
    "num_steps", "train_loss", "test_loss", "test_loss_low", "test_loss_high", "loss_before",
    "metric", "train_seconds", "memory_gib", "planned_gib",
)  # fmt: skip
_NOTHING: Mapping[str, str] = {}
_CAPTIONS = {
    "loss_by_size.png": "Final loss by size; bars: lowest and highest seed",
    "loss_over_steps.png": "Training loss over steps, mean of seeds",
    "resources.png": "Trainable share, time and memory, mean of seeds",
    "metric_by_trained.png": "Metric against trainable parameters, mean of seeds",
    "metric_by_loss.png": "Metric against loss, a point for each cell",
    "cost.png": "Cost against loss, mean of seeds; the line is the Pareto front",
}


def write_report(
    folder: Path,
    comparison: Comparison,
    failures: Sequence[Failure] = (),
    missing: Mapping[str, str] = _NOTHING,
) -> Path:
    """Write report.csv, the pictures and, last, report.md; its path.

    Args:
        folder: Made where absent.
        comparison: Of the finished cells.
        failures: Cells that failed now.
        missing: Names of all cells that are not finished, and why.
    """
    drawn = pictures.draw(comparison)
    page = render(comparison, failures, missing)
    write_files(folder, {**drawn, "report.csv": csv_text(comparison.results), "report.md": page})
    return folder / "report.md"


def csv_text(results: Sequence[Result]) -> str:
    """A line for each cell, every digit kept."""
    text = io.StringIO()
    others = list(results[0].measures)[1:]  # the first is the metric
    writer = csv.DictWriter(text, [*_COLUMNS, *others], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for result in results:
        low, high = result.test_interval or (None, None)
        more = {"test_loss_low": low, "test_loss_high": high, "metric": result.metric}
        more |= {"trained_share": result.trained_share}
        writer.writerow(vars(result) | dict(result.measures) | more)
    return text.getvalue()


def render(
    comparison: Comparison, failures: Sequence[Failure] = (), missing: Mapping[str, str] = _NOTHING
) -> str:
    """The page."""
    c = comparison
    parts = [
        "# Tuning methods compared",
        f"{len(c.methods)} methods, {len(c.models)} models, seeds"
        f" {', '.join(map(str, c.seeds))}: {len(c.results)} cells are finished, {len(missing)} are"
        " not. Numbers are means over seeds with [lowest, highest]. Train loss is the mean of the"
        f" last tenth of the logged steps; test loss and {c.metric} are of the best step, on the"
        " whole test split.",
        "## Does the order of methods at the smallest size predict that at the largest?",
        "\n\n".join(answer_lines(c)),
        _order_table(c.orders),
        "## Methods",
        *(_methods_table(model, c) for model in c.models),
        "## Loss and metric",
        _relation_table(c),
        "## Pareto front",
        _front(c),
        "## Pictures",
        *(f"![{caption}]({name})\n\n{caption}." for name, caption in _CAPTIONS.items()),
        "## What this does not show",
        "\n".join(f"- {line}" for line in limit_lines(c)),
        _unfinished(failures, missing),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _order_table(found: Sequence[Order]) -> str:
    if not found:
        return ""
    header = ["Sizes", "Kendall tau", "Spearman rho", "p", "Order (place on the larger)"]
    rows = [
        [
            f"{order.model} -> {order.other}",
            pictures.with_interval(order.tau, order.tau_interval),
            pictures.with_interval(order.rho, order.rho_interval),
            "-" if order.p is None else f"{order.p:.4f}",
            ", ".join(
                f"{method} ({place})"
                for method, place in zip(order.methods, order.places, strict=True)
            ),
        ]
        for order in found
    ]
    note = (
        "Methods are listed best first on the smaller size; p is that of tau under random orders."
    )
    if any(order.tau_interval for order in found):
        note += " Brackets hold the 95% percentile interval over seeds (2,000 resamples)."
    return f"{table(header, rows, others_align='---')}\n\n{note}"


def _methods_table(model: str, comparison: Comparison) -> str:
    members = [group for group in comparison.groups if group.model == model]
    measures = comparison.measures
    size = pictures.parameters(members[0].cells[0].num_base)
    header = [
        "Method", "Trained", "Share", "Train loss", "Test loss",
        *(measure.heading for measure in measures.values()),
        "Seconds", "Peak GiB (planned)",
    ]  # fmt: skip
    rows = [
        [
            group.method,
            f"{group.cells[0].num_trained:,}",
            f"{group.cells[0].trained_share:.2%}",
            _over_seeds([cell.train_loss for cell in group.cells], 3),
            _over_seeds([cell.test_loss for cell in group.cells], 3),
            *(_over_seeds([cell.measures[name] for cell in group.cells], 4) for name in measures),
            _over_seeds([cell.train_seconds for cell in group.cells], 1),
            f"{group.mean(lambda cell: cell.memory_gib):.3f}"
            f" ({group.mean(lambda cell: cell.planned_gib):.3f})",
        ]
        for group in members
    ]
    before = [cell.loss_before for group in members for cell in group.cells]
    note = ""
    if any(loss is not None for loss in before):
        note = f"\n\nTest loss before training, over all cells: {_over_seeds(before, 3)}."
    return f"### {model} ({size})\n\n{table(header, rows)}{note}"


def _relation_table(comparison: Comparison) -> str:
    if not comparison.relations:
        return "Too few cells are finished for a rank correlation."
    header = ["Cells", "Number", f"Spearman of {comparison.loss_name} and {comparison.metric}"]
    rows = [
        [r.where, str(r.num), pictures.with_interval(r.rho, r.interval)]
        for r in comparison.relations
    ]
    note = (
        "Brackets hold the 95% percentile interval of 2,000 resamples of methods x models, seeds"
        " together. -1: the lower the loss, the better the metric, without exception. Over all"
        " cells the size of the model drives both; within a model it cannot."
    )
    return f"{table(header, rows)}\n\n{note}"


def _front(comparison: Comparison) -> str:
    groups = comparison.groups
    costs = {
        "training time": front_of(groups, lambda cell: cell.train_seconds),
        comparison.memory_name: front_of(groups, lambda cell: cell.peak_gib),
        "trainable parameters": front_of(groups, lambda cell: cell.num_trained),
    }
    lines = [
        f"- {name}: {', '.join(f'{group.method} on {group.model}' for group in front)}"
        for name, front in costs.items()
    ]
    return "Not beaten in both cost and loss, cheapest first:\n\n" + "\n".join(lines)


def _unfinished(failures: Sequence[Failure], missing: Mapping[str, str]) -> str:
    if not missing:
        return ""
    failed = {failure.cell for failure in failures}
    parts = ["## Cells that are not finished"]
    for failure in failures:
        lines = "\n".join(f"    {line}" for line in failure.lines)
        code = f"signal {-failure.code}" if failure.code < 0 else f"exit code {failure.code}"
        parts.append(f"{failure.cell}: {code}; all it printed: `{failure.output}`\n\n{lines}")
    waiting = [f"- {name}: {why}" for name, why in missing.items() if name not in failed]
    if waiting:
        parts.append("\n".join(waiting))
    return "\n\n".join(parts)


def _over_seeds(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{sum(known) / len(known):.{digits}f}"
    low, high = f"{min(known):.{digits}f}", f"{max(known):.{digits}f}"
    return mean if low == high else f"{mean} [{low}, {high}]"
