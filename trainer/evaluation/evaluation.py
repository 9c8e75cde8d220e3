"""EVALUATIONS[name] measures a model before, while and after it learns a task."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn

from data.prepared.prepare import Prepared, Split
from trainer.config.sections import RunConfig
from trainer.evaluation.functions.evaluation import FunctionEvaluation
from trainer.evaluation.functions.validation import Validation
from trainer.evaluation.language.evaluation import LanguageEvaluation
from trainer.processes.distributed import Ranks
from trainer.run_folder.metrics import RunLog

Report = dict[str, Any]


class Evaluation(Protocol):
    """Of one run; every method but `show` is called by all ranks."""

    def begin(self) -> None:
        """Measure what training will be compared with, before the first step."""

    def validate(self, step: int) -> Validation:
        """Measure the validation split and log it."""

    def test(
        self, split: Split, name: str, threshold: float, facts: Mapping[str, Any]
    ) -> Callable[[], Report]:
        """Score a split; what is returned writes the report, on one rank."""

    def show(self, report: Report) -> None:
        """Print a report as a table."""


EVALUATIONS: dict[
    str, Callable[[RunConfig, Prepared, Ranks, nn.Module, RunLog | None], Evaluation]
] = {
    "classification": FunctionEvaluation,
    "instruction": LanguageEvaluation,
    "causal_lm": LanguageEvaluation,
}
