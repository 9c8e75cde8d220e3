"""The classification head over packed functions.

B rows, T tokens per row, D hidden, S packed functions, C classes.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from data.batch import Batch
from trainer.models.hidden_states import hidden_states
from trainer.tuning.plain import PlainModel

if TYPE_CHECKING:
    from peft import PeftModel


class PackedClassifier(nn.Module):
    """Logits of every function of a packed batch.

    The hidden state at each recorded last token is gathered first and projected after, so the head
    sees S states, not B x T, and no token id is searched for.

    Args:
        model: A sequence-classification model of transformers under its tuning method; its own
            forward, which looks for the last token by id, is never called.
        attention: Resolved back end.
    """

    def __init__(self, model: "PeftModel | PlainModel", attention: str) -> None:
        super().__init__()
        self.model = model
        self.attention = attention

    def forward(self, batch: Batch) -> Tensor:
        """Logits (S, C) in the head's dtype; `batch` is on the model's device."""
        classifier = self.model.get_base_model()
        hidden_BTD = hidden_states(self.model, batch, self.attention)
        hidden_SD = hidden_BTD[batch.row_S, batch.last_token_S]
        logits_SC: Tensor = classifier.score(hidden_SD.to(self._head_dtype()))
        return logits_SC

    def _head_dtype(self) -> torch.dtype:
        """Of the trained head: fp32 over a 16-bit base where the run trains in fp32."""
        dtype: torch.dtype = next(p.dtype for p in self.model.parameters() if p.requires_grad)
        return dtype
