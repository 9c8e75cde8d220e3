"""Which measure of the validation chooses the best step: eval.metric."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from data.text.labels import Classes
from trainer.errors import ConfigError
from trainer.evaluation.measures import MEASURES, TASK_MEASURES, Measure, measures_of
from trainer.evaluation.predictors import Measured


def measured_kind(task: str, classes: Classes) -> Measured:
    """What the measures of a run are computed from."""
    if task != "classification" or classes.is_binary:
        return TASK_MEASURES[task]
    return "classes" if classes.sets is None else "labels"


def check_metric(metric: str, task: str, classes: Classes | None = None) -> None:
    """Refuse an eval.metric that the task does not measure; without classes, of any of them.

    Raises:
        ConfigError: With the nearest name and all that there are.
    """
    kinds: Sequence[Measured] = [TASK_MEASURES[task]]
    if task == "classification":
        kinds = (
            ["functions", "classes", "labels"]
            if classes is None
            else [measured_kind(task, classes)]
        )
    names = ["auto", *dict.fromkeys(name for of in kinds for name in _deciders(of))]
    if metric not in names:
        close = difflib.get_close_matches(metric, names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"eval.metric {metric[:80]!r} is not measured on validation{hint}; allowed: {names}"
        )


def deciding(of: Measured, metric: str) -> tuple[str, Measure]:
    """Name and measure of an eval.metric; "auto" is the one that `decides`."""
    if metric != "auto":
        return metric, _deciders(of)[metric]
    [found] = [(name, measure) for name, measure in measures_of(of).items() if measure.decides]
    return found


def deciding_score(of: Measured, values: Mapping[str, Any], metric: str) -> float | None:
    """The value that chooses the best step, negated where lower is better."""
    name, measure = deciding(of, metric)
    value: float | None = values[name]
    return value if value is None or measure.higher_is_better else -value


def best_value(of: Measured, score: float | None, metric: str) -> dict[str, float | None]:
    """The measure behind a deciding score, by its name."""
    name, measure = deciding(of, metric)
    value = score if score is None or measure.higher_is_better else -score
    return {f"valid_{name}": value}


def _deciders(of: Measured) -> dict[str, Measure]:
    """What a validation measures: the loss of every task, beside its own measures."""
    return measures_of(of) | {"loss": MEASURES["loss"]}
