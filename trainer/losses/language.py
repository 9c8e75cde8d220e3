"""Next-token loss: of the answers for instruction tuning, of whole texts for causal_lm."""

from collections.abc import Callable

import torch
from torch import Tensor

from data.batches.batch import Batch
from trainer.config.sections import LossSection
from trainer.losses.loss import LossSum


class Language:
    """The loss of a batch of supervised tokens; the model computes it in its output layer."""

    def __init__(self, loss: LossSection, device: torch.device) -> None:
        """Keeps nothing: the model holds the loss."""

    def loss_sum(self, forward: Callable[[Batch], tuple[Tensor, Tensor]], batch: Batch) -> LossSum:
        """Loss sum and number of targets of a batch.

        Args:
            forward: Batch -> sum and count, in training mode.
            batch: On the model's device.
        """
        return LossSum(*forward(batch))
