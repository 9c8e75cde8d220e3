"""Heads over packed rows: class logits, or the loss of the next token.

B rows, T tokens per row, P virtual tokens of P-Tuning, D hidden, S positions that are read, C
classes.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from data.batches.batch import Batch
from trainer.config.sections import LossSection
from trainer.models.packed_attention import attention_inputs
from trainer.models.token_loss import TokenLoss
from trainer.tuning.plain import PlainModel
from trainer.tuning.ptuning import virtual_tokens

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
        hidden_SD = read_states(self.model, batch, self.attention)
        # fp32 over a 16-bit base where the run trains in fp32
        trained = next(p.dtype for p in self.model.parameters() if p.requires_grad)
        logits_SC: Tensor = self.model.get_base_model().score(hidden_SD.to(trained))
        return logits_SC


class PackedLanguageModel(nn.Module):
    """Loss, or scores, of the targets of a packed batch.

    The states before targets are gathered first, so other tokens never reach the output layer,
    and B x T x vocabulary logits never exist.

    Args:
        model: A causal language model of transformers under its tuning method.
        attention: Resolved back end.
        loss: gamma, and the settled back end.
        detach_modulator: As in `linear_focal_loss`.
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

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor] | Tensor:
        """Sum and count in training; in evaluation the scores (S, 3) of `token_scores`."""
        hidden_SD = read_states(self.model, batch, self.attention)
        result: tuple[Tensor, Tensor] | Tensor
        result = self.loss(hidden_SD, batch.labels_S, batch.weights_S)
        return result


PackedModel: TypeAlias = PackedClassifier | PackedLanguageModel


def read_states(model: "PeftModel | PlainModel", batch: Batch, attention: str) -> Tensor:
    """Last hidden states (S, D) at the positions that are read.

    With virtual tokens, a row holds one function.
    """
    base = model.get_base_model()
    prompt_1PD = virtual_tokens(model)
    if prompt_1PD is None:
        inputs = attention_inputs(batch, attention, base.dtype)
        hidden_BTD = base.base_model(input_ids=batch.input_ids_BT, **inputs).last_hidden_state
    else:
        num_virtual = prompt_1PD.shape[1]
        tokens_BTD = base.get_input_embeddings()(batch.input_ids_BT)
        prompt_BPD = prompt_1PD.to(tokens_BTD.dtype).expand(len(tokens_BTD), -1, -1)
        inputs = attention_inputs(prompted(batch, num_virtual), attention, base.dtype)
        hidden_BTD = base.base_model(
            inputs_embeds=torch.cat([prompt_BPD, tokens_BTD], dim=1), **inputs
        ).last_hidden_state[:, num_virtual:]
    states_SD: Tensor = hidden_BTD[batch.row_S, batch.read_S]
    return states_SD


def prompted(batch: Batch, num_virtual: int) -> Batch:
    """A batch whose rows begin with virtual tokens, which belong to the row's only function.

    Token ids stay as they are: `read_states` joins the embeddings.
    """
    device, num_rows = batch.input_ids_BT.device, len(batch.input_ids_BT)
    virtual_BP = torch.arange(num_virtual, device=device).expand(num_rows, -1)
    lengths, start, width = [], 0, batch.input_ids_BT.shape[1]
    for length in batch.segment_lengths:
        lengths.append(length + (num_virtual if start % width == 0 else 0))
        start += length
    return replace(
        batch,
        position_ids_BT=torch.cat([virtual_BP, batch.position_ids_BT + num_virtual], dim=1),
        segment_ids_BT=torch.cat([torch.zeros_like(virtual_BP), batch.segment_ids_BT], dim=1),
        segment_lengths=tuple(lengths),
    )
