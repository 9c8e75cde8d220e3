"""Vulnerable or not: focal loss at the last token of each packed function."""

from collections.abc import Callable

import torch
from torch import Tensor

from data.batches.batch import Batch
from trainer.config.sections import LossSection
from trainer.losses.loss import LossSum, focal_loss


class Classification:
    """The loss of a batch of functions.

    Args:
        loss: gamma, class and group weights.
        device: Device of the model.
    """

    def __init__(self, loss: LossSection, device: torch.device) -> None:
        self.loss = loss
        self.alpha_C = None if loss.alpha is None else torch.tensor(loss.alpha, device=device)

    def loss_sum(self, forward: Callable[[Batch], Tensor], batch: Batch) -> LossSum:
        """Focal loss sum and number of functions of a batch.

        Args:
            forward: Batch -> logits (S, C).
            batch: On the model's device.
        """
        return focal_loss(
            forward(batch),
            batch.labels_S,
            self.loss.gamma,
            alpha_C=self.alpha_C,
            weights_S=batch.weights_S,
            detach_modulator=self.loss.detach_modulator,
        )
