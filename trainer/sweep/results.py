"""The result of a finished cell, read from its run folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluation.measures import TASK_MEASURES, swept_measures
from trainer.evaluation.predictors import Measured
from trainer.planning.plan import read_shape
from trainer.run_folder.folder import FACTS, LOG, MODEL, REPORT
from trainer.run_folder.metrics import read_log
from trainer.sweep.grid import Cell

_TAIL = 0.1  # share of the logged steps whose mean is the final train loss
# Errors of reading a file that is cut short, empty or from another program.
_DAMAGED = (AttributeError, LookupError, OSError, TypeError, ValueError)


class UnfinishedError(ValueError):
    """A cell has no result; the message follows the cell's name and says why."""


@dataclass(frozen=True)
class Result:
    """One cell.

    Attributes:
        is_base_random: The base has no weights and was drawn from the seed.
        num_parameters: Parameters of base and adapters.
        train_loss: Mean of the last tenth of the logged steps.
        test_loss: Of the best step, on the whole test split; None if the task has none.
        test_interval: Interval of test_loss over records.
        loss_before: On test, before the first step.
        measured: What the measures are computed from.
        measures: On test, by name: every measure that sweeps compare.
        train_seconds: All steps of all starts, without validation and test.
        memory_gib: Highest logged, of a GPU's tensors or of the whole process on a CPU.
        planned_gib: Planned tensors at the peak of a step.
        curve: (step, loss) of the logged steps.
        suites: The first measure of each suite that launcher/suite.py measured of its model.
    """

    method: str
    model: str
    seed: int
    num_base: int
    is_base_random: bool
    num_trained: int
    num_parameters: int
    num_steps: int
    train_loss: float
    test_loss: float | None
    test_interval: tuple[float, float] | None
    loss_before: float | None
    measured: Measured
    measures: Mapping[str, float | None]
    train_seconds: float
    memory_gib: float
    planned_gib: float
    is_on_cpu: bool
    curve: tuple[tuple[int, float], ...]
    data: str
    suites: Mapping[str, float]

    @property
    def metric(self) -> float | None:
        """The first of the measures, which pictures and correlations use."""
        return next(iter(self.measures.values()))

    @property
    def trained_share(self) -> float:
        """Share of all parameters, adapters included."""
        return self.num_trained / self.num_parameters

    @property
    def peak_gib(self) -> float:
        """Memory to compare by: on a CPU the plan, as most of the process is libraries."""
        return self.planned_gib if self.is_on_cpu else self.memory_gib

    @property
    def loss(self) -> float:
        """Loss to compare by: on test, or on train if the task has no loss on test."""
        return self.train_loss if self.test_loss is None else self.test_loss


def read_result(cell: Cell) -> Result:
    """Read a finished cell."""
    folder = cell.config.output_dir
    return Result(
        method=cell.method,
        model=cell.model,
        seed=cell.seed,
        suites=_suites(folder),
        num_base=read_shape(cell.config).num_parameters,
        is_base_random=cell.config.model.path is None,
        **take(
            folder / REPORT / "test.json",
            read_json,
            lambda report: _of_report(report, cell.config.task.name),
        ),
        **take(folder / "plan.json", read_json, _of_plan),
        **take(folder / LOG, read_log, _of_log),
    )


def _suites(folder: Path) -> dict[str, float]:
    """Scores of suites by name; those of an earlier model of the run are passed over."""
    paths, found = sorted(folder.glob("suites/*/suite.json")), {}
    since = take(folder / MODEL / FACTS, Path.stat, lambda one: one.st_mtime_ns) if paths else 0
    for path in paths:
        measures = take(path, read_json, lambda content: dict(content["measures"]))
        if measures and path.stat().st_mtime_ns >= since:
            found[path.parent.name] = float(next(iter(measures.values()))["value"])
    return found


def take(path: Path, read: Callable[[Path], Any], choose: Callable[[Any], Any]) -> Any:
    """Values chosen from a file of a run folder.

    Raises:
        UnfinishedError: The file is missing or damaged.
    """
    try:
        return choose(read(path))
    except _DAMAGED as error:
        raise UnfinishedError(
            f"{path} is missing or damaged ({error!r}); run the cell again; if that does not"
            " help, remove its folder"
        ) from error


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def final_loss(losses: Sequence[float]) -> float:
    """Mean of the last tenth of the losses, at least one: a single loss depends on its rows."""
    tail = losses[-max(1, round(_TAIL * len(losses))) :]
    return sum(tail) / len(tail)


def _of_report(report: Mapping[str, Any], task: str) -> dict[str, Any]:
    model, facts = report["predictors"]["model"], report["facts"]
    interval, of = model.get("interval"), report.get("measured", TASK_MEASURES[task])
    return {
        "num_steps": facts["steps"],
        "test_loss": model.get("loss"),
        "test_interval": None if interval is None else (interval[0], interval[1]),
        "loss_before": report["predictors"].get("before training", {}).get("loss"),
        "measured": of,
        "measures": {name: model.get("metrics", model)[name] for name in swept_measures(of)},
        "data": " ".join(facts[f"sha256_{split}"] for split in ("train", "valid", "test")),
    }


def _of_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_trained": plan["num_trained"],
        "num_parameters": plan["num_parameters"],
        "planned_gib": plan["memory"]["total"] / 2**30,
        "is_on_cpu": plan["limit_bytes"] is None,
    }


def _of_log(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not rows:
        raise ValueError("no step is logged")
    return {
        "train_loss": final_loss([row["loss"] for row in rows]),
        "train_seconds": rows[-1]["train_seconds"],
        "memory_gib": max(row["memory_gib"] for row in rows),
        "curve": tuple((row["step"], row["loss"]) for row in rows),
    }
