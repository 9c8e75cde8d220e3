"""Heads over packed rows: class logits, or the loss of the next token.

B rows, T tokens per row, P virtual tokens of P-Tuning, D hidden, S positions that are read, C
classes, N texts, V vocabulary.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from data.batches.batch import Batch
from trainer.architectures.classes import OWN
from trainer.architectures.derived import backbone_of
from trainer.config.sections import LossSection
from trainer.models import varlen_kernels  # noqa: F401  # makes its back ends known
from trainer.models.output import without_cache
from trainer.models.packed_attention import ROWS, Strategy, packed_inputs
from trainer.models.pooling import own_logits, pooled_states
from trainer.models.record_rows import record_rows
from trainer.models.token_loss import TokenLoss
from trainer.models.writing import Texts, last_states
from trainer.tuning.plain import PlainModel
from trainer.tuning.ptuning import num_virtual, prefix, virtual_tokens

if TYPE_CHECKING:
    from peft import PeftModel


class PackedClassifier(nn.Module):
    """Logits of every function of a packed batch.

    A head of one linear layer scores a pooled state of each function: the states are gathered
    before the projection, so it sees S of them, not B x T, and token ids are never searched. Other
    heads of transformers compute with all tokens: their own forward pass gets padded rows.

    Args:
        model: A classifier from `load_base` under its tuning method.
    """

    def __init__(self, model: "PeftModel | PlainModel") -> None:
        super().__init__()
        self.model = model
        self.strategy = self.stock = stock_strategy(model)
        self.pooling: str = getattr(model.get_base_model(), "pooling", "last")

    def forward(self, batch: Batch) -> Tensor:
        """Logits (S, C) in the head's dtype; `batch` is on the model's device."""
        if self.pooling == OWN:
            return own_logits(self.model, batch, self.strategy)
        hidden_SD = pooled_states(
            batch, self.pooling, lambda some: read_states(self.model, some, self.strategy)
        )
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
        loss: gamma, and the settled back end.
        detach_modulator: As in `linear_focal_loss`.
    """

    def __init__(
        self,
        model: "PeftModel | PlainModel",
        loss: LossSection,
        detach_modulator: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.strategy = self.stock = stock_strategy(model)
        self.loss = TokenLoss(model, loss, detach_modulator)

    def forward(self, batch: Batch | Texts) -> tuple[Tensor, Tensor] | Tensor:
        """Sum and count in training; in evaluation the scores (S, 3) of `token_scores`.

        Of texts, the logits (N, V) of the token after each, by the attention that is set.
        """
        result: tuple[Tensor, Tensor] | Tensor
        if isinstance(batch, Texts):
            result = self.loss(last_states(self.model, batch))
            return result
        hidden_SD = read_states(self.model, batch, self.strategy)
        result = self.loss(hidden_SD, batch.labels_S, batch.weights_S)
        return result


def stock_strategy(model: "PeftModel | PlainModel") -> Strategy:
    """Each record as stock code takes it; a model keeps to it until proof.py chooses another."""
    return Strategy(ROWS, model.get_base_model().config._attn_implementation, most_padding=-1.0)


PackedModel: TypeAlias = PackedClassifier | PackedLanguageModel


def read_states(model: "PeftModel | PlainModel", batch: Batch, strategy: Strategy) -> Tensor:
    """Last hidden states (S, D) at the positions that are read, of records kept apart.

    With virtual tokens, a row holds one function.
    """
    base = model.get_base_model()
    backbone, embeddings = backbone_of(base), base.get_input_embeddings()
    prompt_1PD = virtual_tokens(model)

    def inputs(input_ids: Tensor) -> dict[str, Tensor]:
        if prompt_1PD is None:
            return {"input_ids": input_ids}
        tokens_BTD = embeddings(input_ids)
        prompt_BPD = prompt_1PD.to(tokens_BTD.dtype).expand(len(tokens_BTD), -1, -1)
        return {"inputs_embeds": torch.cat([prompt_BPD, tokens_BTD], dim=1)}

    num_before = 0 if prompt_1PD is None else prompt_1PD.shape[1]
    if strategy.name == ROWS:

        def run(ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
            mask_NT = nn.functional.pad(mask_NL, (num_virtual(model), 0), value=1)
            given = inputs(ids_NL) | {"attention_mask": mask_NT} | without_cache(backbone)
            outputs = backbone(**given, **prefix(model, len(ids_NL)))
            states_NLD: Tensor = outputs.last_hidden_state[:, -ids_NL.shape[1] :]
            return states_NLD

        pad_id = getattr(embeddings, "padding_idx", None) or 0
        rows = record_rows(batch, pad_id, strategy.num_passes, strategy.most_padding)
        return rows.states(batch, run)
    packed = prompted(batch, num_before) if num_before else batch
    given = inputs(batch.input_ids_BT) | packed_inputs(packed, strategy, base.dtype)
    hidden_BTD = backbone(**given).last_hidden_state[:, num_before:]
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
