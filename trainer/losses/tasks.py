"""TASKS[name] gives the loss of a batch as (sum, count)."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from data.batches.batch import Batch
from trainer.config.sections import LossSection
from trainer.losses.loss import LossSum, focal_loss


class Task(Protocol):
    """Computes the loss of a batch on the model's device, with the model in training mode."""

    def loss_sum(self, forward: Callable[[Batch], Any], batch: Batch) -> LossSum:
        """Sum and count over the targets of a batch; `forward` gives what the model returns."""


class Classification:
    """Vulnerable or not: focal loss of the logits (S, C) at each function's last token."""

    def __init__(
        self, loss: LossSection, device: torch.device, detach_modulator: bool = False
    ) -> None:
        self.gamma = loss.gamma
        self.alpha_C = None if loss.alpha is None else torch.tensor(loss.alpha, device=device)
        self.detach_modulator = detach_modulator

    def loss_sum(self, forward: Callable[[Batch], Tensor], batch: Batch) -> LossSum:
        """Focal loss sum and number of functions of a batch."""
        return focal_loss(
            forward(batch),
            batch.labels_S,
            self.gamma,
            alpha_C=self.alpha_C,
            weights_S=batch.weights_S,
            detach_modulator=self.detach_modulator,
        )


class Language:
    """Next token: of the answers for instruction, of whole texts for causal_lm."""

    def __init__(self, *_: object) -> None:
        """Keeps nothing: the model computes the loss in its output layer."""

    def loss_sum(self, forward: Callable[[Batch], tuple[Tensor, Tensor]], batch: Batch) -> LossSum:
        """Loss sum and number of targets of a batch."""
        return LossSum(*forward(batch))


TASKS: dict[str, Callable[[LossSection, torch.device, bool], Task]] = {
    "classification": Classification,
    "instruction": Language,
    "causal_lm": Language,
}
