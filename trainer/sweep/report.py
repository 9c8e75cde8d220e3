"""The report of a sweep: a page, a row for each cell, and pictures."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data.audit.markdown import fill
from data.text.escaping import csv_value
from trainer.evaluation.measures import with_interval
from trainer.evaluation.page.page import write_page
from trainer.evaluation.report import write_files
from trainer.sweep import pictures
from trainer.sweep.findings import FEWEST, Comparison
from trainer.sweep.results import Result
from trainer.sweep.running import Failure

_COLUMNS = (
    "method", "model", "seed", "num_base", "num_trained", "num_parameters", "trained_share",
    "num_steps", "train_loss", "test_loss", "test_loss_low", "test_loss_high", "loss_before",
    "metric", "train_seconds", "memory_gib", "planned_gib",
)  # fmt: skip
_PAGE = Path(__file__).with_name("report.md.jinja")
_NOTHING: Mapping[str, str] = {}
_CAPTIONS = {
    "loss_by_size.svg": "Final loss by size; bars: lowest and highest seed",
    "loss_over_steps.svg": "Training loss over steps, mean of seeds",
    "resources.svg": "Trainable share, time and memory, mean of seeds",
    "metric_by_loss.svg": "Metric against loss, a point for each cell",
    "cost.svg": "Cost against score, mean of seeds, with the interval over test records; the"
    " grey line is the Pareto front",
    "suites_by_trained.svg": "Score on suites against trainable parameters, mean of seeds",
    "suites_by_loss.svg": "Score on suites against loss, mean of seeds",
}


def write_report(
    folder: Path,
    comparison: Comparison,
    failures: Sequence[Failure] = (),
    missing: Mapping[str, str] = _NOTHING,
) -> Path:
    """Write report.csv, the pictures report.md and index.html; returns the path of report.md.

    Args:
        missing: Name of every cell that is not finished -> why.
    """
    drawn = pictures.draw(comparison)
    page = render(comparison, failures, missing)
    write_files(folder, {**drawn, "report.csv": csv_text(comparison.results), "report.md": page})
    write_page(folder, "Sweep")
    return folder / "report.md"


def csv_text(results: Sequence[Result]) -> str:
    """A line for each cell, with every digit."""
    text = io.StringIO()
    others = list(results[0].measures)[1:]  # the first is the metric
    suites = sorted({name for result in results for name in result.suites})
    columns = [*_COLUMNS, *others, *suites]
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for result in results:
        low, high = result.test_interval or (None, None)
        more = {"test_loss_low": low, "test_loss_high": high, "metric": result.metric}
        more |= {"trained_share": result.trained_share}
        values = vars(result) | dict(result.measures) | more
        values |= dict.fromkeys(suites) | dict(result.suites)
        writer.writerow({name: csv_value(values[name]) for name in columns})
    return text.getvalue()


def render(
    comparison: Comparison, failures: Sequence[Failure] = (), missing: Mapping[str, str] = _NOTHING
) -> str:
    """The page."""
    groups = comparison.groups
    costs: dict[str, Callable[[Result], float]] = {
        "training time": lambda cell: cell.train_seconds,
        comparison.memory_name: lambda cell: cell.peak_gib,
        "trainable parameters": lambda cell: cell.num_trained,
    }
    return fill(
        _PAGE,
        c=comparison,
        fewest=FEWEST,
        fronts={name: comparison.front(groups, cost) for name, cost in costs.items()},
        captions={n: c for n, c in _CAPTIONS.items() if comparison.suites or "suites" not in n},
        failures=failures if missing else (),
        failed={failure.cell for failure in failures},
        missing=missing,
        over_seeds=_over_seeds,
        parameters=pictures.parameters,
        with_interval=lambda value, ends: with_interval(value, ends, "+.2f"),
    )


def _over_seeds(values: Iterable[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{sum(known) / len(known):.{digits}f}"
    low, high = f"{min(known):.{digits}f}", f"{max(known):.{digits}f}"
    return mean if low == high else f"{mean} [{low}, {high}]"
