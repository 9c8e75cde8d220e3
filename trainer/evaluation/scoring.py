"""What every evaluation shares: the run it measures, and the model's outputs for a whole split."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data.batches.batch import Batch
from data.batches.loader import evaluation_batches
from data.config import DataConfig
from data.prepared.prepare import Prepared, Split
from data.text import terminal
from data.text.tokenization import ExampleSet
from trainer.config.sections import RunConfig
from trainer.errors import DivergedError
from trainer.evaluation.decision import USUAL_DECISION, Decision
from trainer.evaluation.measures import shown_measures
from trainer.evaluation.predictors import Measured
from trainer.losses.tasks import Task
from trainer.processes.distributed import Ranks, all_reduce_sum
from trainer.run_folder.metrics import RunLog

Outputs = Iterable[tuple[Batch, Tensor]]


@dataclass(frozen=True)
class Validation:
    """The outcome of a validation.

    Attributes:
        score: Chooses the best step, higher is better; None where it is undefined.
        decision: At this step.
    """

    score: float | None
    decision: Decision = USUAL_DECISION


@dataclass
class Evaluation(ABC):
    """Measures the model of one run; all ranks call every method.

    Attributes:
        model: Batch -> logits (S, 2), or scores (S, 3) of a language model in evaluation mode.
        log: On rank 0; None elsewhere.
        task: Its loss is measured on validation; None where nothing is validated.
        baselines: A finished run's folder with what they learned; None while it trains.
    """

    config: RunConfig
    prepared: Prepared
    ranks: Ranks
    model: nn.Module
    log: RunLog | None
    task: Task | None = None
    baselines: Path | None = None

    @abstractmethod
    def begin(self) -> None:
        """Measure before the first step what training will be compared with."""

    @abstractmethod
    def validate(self, step: int) -> Validation:
        """Measure the validation split and log it."""

    @abstractmethod
    def test(
        self, split: Split, name: str, decision: Decision, facts: Mapping[str, Any]
    ) -> Callable[[], dict[str, Any]]:
        """Score a split; returns a function that writes the report, to be called on one rank."""

    def leave(self, folder: Path) -> None:  # noqa: B027  # most need nothing
        """Leave in a new folder what evaluations of the finished run need; on one rank."""

    def outputs(self, split: Split) -> Outputs:
        """The model's outputs for this rank's batches of a split."""
        data, micro_batch_size = self.config.data, self.config.optim.micro_rows
        what, examples = f"scoring {split.folder.name}", split.examples
        batches = split_batches(examples, data, micro_batch_size, self.ranks, what)
        return outputs(self.model, batches)

    def log_validation(
        self, step: int, of: Measured, values: Mapping[str, Any], **more: float | None
    ) -> None:
        """Log the measures that tables show."""
        if self.log is not None:
            shown = {name: values[name] for name in shown_measures(of)}
            self.log.validation({"step": step, **shown, **more})


def split_batches(
    examples: ExampleSet,
    data: DataConfig,
    micro_batch_size: int,
    ranks: Ranks,
    what: str = "scoring",
) -> Iterator[Batch]:
    """A rank's batches of a split, laid out as in training, on its device; `what` names the step.

    All ranks have the same number of batches; the last ones of some ranks can be empty.
    """
    batches = evaluation_batches(
        examples,
        seq_length=data.seq_length,
        packing=data.packing,
        micro_batch_size=micro_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        isolate=data.isolate,
    )
    num = len(examples) / ranks.world_size
    for batch in terminal.tracked(batches, what, num, lambda batch: len(batch.example_S)):
        yield batch.to(ranks.device)


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch and the output of the model in evaluation mode; training mode at the end."""
    model.eval()
    for batch in batches:
        yield batch, model(batch)
    model.train()


def sum_of_ranks(sums: Tensor, ranks: Ranks) -> npt.NDArray[np.float64]:
    """Add up what every rank has scored.

    Raises:
        DivergedError: A value is not finite.
    """
    total: npt.NDArray[np.float64] = all_reduce_sum(sums.to(ranks.device)).cpu().numpy()
    if not np.isfinite(total).all():
        raise DivergedError("the model's scores are not finite; lower optim.lr or check the base")
    return total
