"""The backbone over a batch, with P-Tuning's virtual tokens before every function.

B rows, T tokens per row, P virtual tokens, D hidden.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.batches.batch import Batch
from trainer.models.packed_attention import attention_inputs
from trainer.tuning.plain import PlainModel
from trainer.tuning.ptuning import virtual_tokens

if TYPE_CHECKING:
    from peft import PeftModel


def hidden_states(model: "PeftModel | PlainModel", batch: Batch, attention: str) -> Tensor:
    """The last hidden state of every token of a batch (B, T, D), functions isolated.

    Args:
        model: A base under its tuning method.
        batch: On the model's device; rows hold one function where there are virtual tokens.
        attention: Resolved back end.
    """
    base = model.get_base_model()
    prompt_1PD = virtual_tokens(model)
    if prompt_1PD is None:
        inputs = attention_inputs(batch, attention, base.dtype)
        plain: Tensor = base.base_model(input_ids=batch.input_ids_BT, **inputs).last_hidden_state
        return plain
    tokens_BTD = base.get_input_embeddings()(batch.input_ids_BT)
    prompt_BPD = prompt_1PD.to(tokens_BTD.dtype).expand(len(tokens_BTD), -1, -1)
    num_virtual = prompt_1PD.shape[1]
    inputs = attention_inputs(prompted(batch, num_virtual), attention, base.dtype)
    hidden: Tensor = base.base_model(
        inputs_embeds=torch.cat([prompt_BPD, tokens_BTD], dim=1), **inputs
    ).last_hidden_state
    return hidden[:, num_virtual:]


def prompted(batch: Batch, num_virtual: int) -> Batch:
    """A batch whose rows begin with virtual tokens, which belong to the row's only function.

    Token ids stay as they are: the embeddings are laid out by the caller.
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
