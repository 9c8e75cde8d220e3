"""The next token: instruction tuning learns those of answers, causal_lm those of whole texts."""

from collections.abc import Callable

import torch
from torch import Tensor

from data.batches.batch import Batch
from trainer.config.sections import LossSection
from trainer.losses.loss import LossSum


class Language:
    """The loss of a batch of supervised tokens, which the model computes with its output layer."""

    def __init__(self, loss: LossSection, device: torch.device) -> None:
        """Nothing to keep: the model holds the loss."""

    def loss_sum(self, forward: Callable[[Batch], tuple[Tensor, Tensor]], batch: Batch) -> LossSum:
        """Loss sum and number of targets of a batch.

        Args:
            forward: Batch -> sum and count, in training mode.
            batch: On the model's device.
        """
        return LossSum(*forward(batch))
