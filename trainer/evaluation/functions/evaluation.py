"""Classification: validation chooses the best step and the threshold; the test report uses both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from data.prepared.prepare import Prepared, Split
from trainer.config.sections import RunConfig
from trainer.evaluation.functions.metrics import best_threshold, classification_metrics
from trainer.evaluation.functions.report import print_table
from trainer.evaluation.functions.split_report import write_split_report
from trainer.evaluation.functions.validation import Validation, population, score_functions
from trainer.evaluation.measures import deciding_score, shown_measures
from trainer.processes.distributed import Ranks
from trainer.run_folder.folder import REPORT
from trainer.run_folder.metrics import RunLog


@dataclass
class FunctionEvaluation:
    """Evaluation of a run that detects vulnerable functions.

    Attributes:
        config: The recipe.
        prepared: Its data.
        ranks: This process among all.
        model: Batch -> logits (S, 2).
        log: On rank 0; None elsewhere.
    """

    config: RunConfig
    prepared: Prepared
    ranks: Ranks
    model: nn.Module
    log: RunLog | None

    @property
    def prior(self) -> float:
        """Share of vulnerable functions in training."""
        targets = self.prepared.splits["train"].targets
        return sum(targets) / len(targets)

    def begin(self) -> None:
        """Nothing: the baselines are learned at the end."""

    def validate(self, step: int) -> Validation:
        """Score the validation split; the deciding score and the threshold of the highest F1."""
        valid = self.prepared.splits["valid"]
        scores = score_functions(self.model, valid.examples, self.prior, self.config, self.ranks)
        scored = population(valid.examples, self.config.replication.compat_population)
        scores, targets = scores[scored], np.array(valid.targets)[scored]
        threshold = best_threshold(scores, targets)
        values = classification_metrics(scores, targets, threshold)
        if self.log is not None:
            shown = {name: values[name] for name in shown_measures("functions")}
            self.log.validation({"step": step, **shown, "threshold": threshold})
        return Validation(deciding_score("functions", values), threshold)

    def test(
        self, split: Split, name: str, threshold: float, facts: Mapping[str, Any]
    ) -> Callable[[], dict[str, Any]]:
        """Score a split; the report compares the model with the baselines."""
        config, splits = self.config, self.prepared.splits
        scores = score_functions(self.model, split.examples, self.prior, config, self.ranks)
        return lambda: write_split_report(
            config.output_dir / REPORT,
            name,
            split,
            scores,
            threshold,
            splits,
            facts,
            compat_population=config.replication.compat_population,
        )

    def show(self, report: dict[str, Any]) -> None:
        """Print the predictors."""
        print_table(report)
