"""TASKS[name] gives the loss of a batch as (sum, count)."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.batches.batch import Batch
from data.text.tokenization import ExampleSet
from trainer.config.sections import LossSection
from trainer.losses.loss import LossSum, focal_loss, multi_label_focal_loss


class Task(Protocol):
    """Computes the loss of a batch on the model's device, with the model in training mode."""

    def loss_sum(self, forward: Callable[[Batch], Any], batch: Batch) -> LossSum:
        """Sum and count over the targets of a batch; `forward` gives what the model returns."""


class Classification:
    """Classes of functions: focal loss of the logits (S, C) at each function's last token.

    Args:
        loss: gamma and the weights of classes.
        device: The model's.
        detach_modulator: As in `focal_loss`.
        examples: The training split, whose classes are counted where several hold at once.
    """

    def __init__(
        self,
        loss: LossSection,
        device: torch.device,
        detach_modulator: bool = False,
        examples: ExampleSet | None = None,
    ) -> None:
        self.gamma = loss.gamma
        self.alpha_C = None if loss.alpha is None else torch.tensor(loss.alpha, device=device)
        self.detach_modulator = detach_modulator
        self.weights_2C: Tensor | None = None
        if examples is not None and examples.members_KC is not None:
            self.weights_2C = _answer_weights(loss, examples).to(device)

    def loss_sum(self, forward: Callable[[Batch], Tensor], batch: Batch) -> LossSum:
        """Focal loss sum and number of functions of a batch."""
        logits_SC = forward(batch)
        if self.weights_2C is not None:
            return multi_label_focal_loss(
                logits_SC,
                batch.labels_S,
                self.gamma,
                weights_2C=self.weights_2C,
                weights_S=batch.weights_S,
                detach_modulator=self.detach_modulator,
            )
        return focal_loss(
            logits_SC,
            batch.labels_S,
            self.gamma,
            alpha_C=self.alpha_C,
            weights_S=batch.weights_S,
            detach_modulator=self.detach_modulator,
        )


def _answer_weights(loss: LossSection, examples: ExampleSet) -> Tensor:
    """Weight of each class (2, C) where it does not hold, and where it does.

    alpha weighs a class where it holds, as torch's pos_weight. "balanced" weighs the two answers of
    each class as it weighs two classes: N / (2 N_answer).
    """
    assert examples.members_KC is not None
    share_K = np.bincount(examples.label_E, examples.share_E, len(examples.members_KC))
    holds_C = share_K @ examples.members_KC
    weights_2C = np.ones((2, len(holds_C)), np.float32)
    if loss.alpha is not None:
        weights_2C[1] = loss.alpha
    if loss.class_weights == "balanced":
        counts_2C = np.stack([share_K.sum() - holds_C, holds_C])
        weights_2C = (share_K.sum() / (2 * np.maximum(counts_2C, 1))).astype(np.float32)
    return torch.from_numpy(weights_2C)


class Language:
    """Next token: of the answers for instruction, of whole texts for causal_lm."""

    def __init__(self, *_: object) -> None:
        """Keeps nothing: the model computes the loss in its output layer."""

    def loss_sum(self, forward: Callable[[Batch], tuple[Tensor, Tensor]], batch: Batch) -> LossSum:
        """Loss sum and number of targets of a batch."""
        return LossSum(*forward(batch))


TASKS: dict[str, Callable[[LossSection, torch.device, bool, ExampleSet | None], Task]] = {
    "classification": Classification,
    "instruction": Language,
    "causal_lm": Language,
}
