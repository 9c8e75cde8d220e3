"""TASKS[name] computes the loss of a batch."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from data.batches.batch import Batch
from trainer.config.sections import LossSection
from trainer.losses.classification import Classification
from trainer.losses.language import Language
from trainer.losses.loss import LossSum


class Task(Protocol):
    """Computes the loss of a batch."""

    def loss_sum(self, forward: Callable[[Batch], Any], batch: Batch) -> LossSum:
        """Sum and count of a batch, through the model in training mode."""


TASKS: dict[str, Callable[[LossSection, torch.device], Task]] = {
    "classification": Classification,
    "instruction": Language,
    "causal_lm": Language,
}
