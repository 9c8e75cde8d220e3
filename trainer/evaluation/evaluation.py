"""EVALUATIONS[name] measures a model before, while and after it learns a task."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn

from data.prepare import Prepared, Split
from trainer.config import RunConfig
from trainer.distributed import Ranks
from trainer.evaluation.function_evaluation import FunctionEvaluation
from trainer.evaluation.language_evaluation import LanguageEvaluation
from trainer.evaluation.validation import Validation
from trainer.metrics import RunLog

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
