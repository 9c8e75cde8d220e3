"""Heads over packed rows: class logits, or the loss of the next token.

B rows, T tokens per row, D hidden, S positions that are read, C classes.
"""

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from data.batches.batch import Batch
from trainer.config.sections import LossSection
from trainer.models.hidden_states import hidden_states
from trainer.models.token_loss import TokenLoss, TokenScores
from trainer.tuning.plain import PlainModel

if TYPE_CHECKING:
    from peft import PeftModel


class PackedClassifier(nn.Module):
    """Logits of every function of a packed batch.

    The hidden state at each recorded last token is gathered before the projection, so the head
    sees S states, not B x T, and never searches for a token id.

    Args:
        model: A sequence-classification model of transformers under its tuning method. Its own
            forward, which searches the last token by id, is never called.
        attention: Resolved back end.
    """

    def __init__(self, model: "PeftModel | PlainModel", attention: str) -> None:
        super().__init__()
        self.model = model
        self.attention = attention

    def forward(self, batch: Batch) -> Tensor:
        """Logits (S, C) in the head's dtype; `batch` is on the model's device."""
        hidden_SD = _read_states(self.model, batch, self.attention)
        classifier = self.model.get_base_model()
        logits_SC: Tensor = classifier.score(hidden_SD.to(self._head_dtype()))
        return logits_SC

    def _head_dtype(self) -> torch.dtype:
        """Dtype of the trained head: fp32 over a 16-bit base where the run trains in fp32."""
        dtype: torch.dtype = next(p.dtype for p in self.model.parameters() if p.requires_grad)
        return dtype


class PackedLanguageModel(nn.Module):
    """Loss, or scores, of the supervised tokens of a packed batch.

    The states before targets are gathered first, so other tokens never reach the output layer,
    and B x T x vocabulary logits never exist.

    Args:
        model: A causal language model of transformers under its tuning method.
        attention: Resolved back end.
        loss: gamma, and the settled back end.
        detach_modulator: As in `linear_focal_loss`.

    Raises:
        ModelError: The output layer is not one plain linear layer.
    """

    def __init__(
        self,
        model: "PeftModel | PlainModel",
        attention: str,
        loss: LossSection,
        detach_modulator: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        self.loss = TokenLoss(model, loss, detach_modulator)
        self.scores = TokenScores(model)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor] | Tensor:
        """Sum and count in training; in evaluation the scores (S, 3) of `TokenScores`."""
        hidden_SD = _read_states(self.model, batch, self.attention)
        if not self.training:
            scores_S3: Tensor = self.scores(hidden_SD, batch.labels_S)
            return scores_S3
        loss: tuple[Tensor, Tensor] = self.loss(hidden_SD, batch.labels_S, batch.weights_S)
        return loss


PackedModel: TypeAlias = PackedClassifier | PackedLanguageModel


def _read_states(model: "PeftModel | PlainModel", batch: Batch, attention: str) -> Tensor:
    """Last hidden states (S, D) at the positions that are read."""
    hidden_BTD = hidden_states(model, batch, attention)
    return hidden_BTD[batch.row_S, batch.read_S]
