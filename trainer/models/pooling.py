"""What the head of a classifier reads of each function: a pooled state, or all of its tokens.

B rows, T tokens per row, P = B x T places, S functions, D hidden, C classes; N records of a pass,
L tokens of its longest.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.batches.batch import Batch
from trainer.architectures.classes import OWN, head_modules
from trainer.models.packed_attention import Strategy
from trainer.models.record_rows import record_rows
from trainer.tuning.plain import is_backbone
from trainer.tuning.ptuning import is_prompted

if TYPE_CHECKING:
    from peft import PeftModel

    from trainer.tuning.plain import PlainModel


def pooled_states(batch: Batch, pooling: str, read: Callable[[Batch], Tensor]) -> Tensor:
    """States (S, D) of the last or first tokens of functions, or the means of all their tokens.

    Args:
        batch: Read at the last token of every function.
        read: Takes a batch to the states at the places that it reads.
    """
    position_S = batch.position_ids_BT[batch.row_S, batch.read_S]
    if pooling == "last":
        return read(batch)
    if pooling == "first":
        return read(replace(batch, read_S=batch.read_S - position_S))
    num_rows, width = batch.input_ids_BT.shape
    place_P = torch.arange(num_rows * width, device=batch.input_ids_BT.device)
    states_PD = read(replace(batch, row_S=place_P // width, read_S=place_P % width))
    # A product, not a scattered sum: the same bits at every run.
    segment_P = batch.segment_ids_BT.flatten() + place_P // width * width
    is_own_SP = segment_P[batch.row_S * width + batch.read_S][:, None] == segment_P
    share_SP = is_own_SP / (position_S[:, None] + 1)
    return (share_SP @ states_PD.float()).to(states_PD.dtype)


def head_line(base: Any, pooling: str) -> str:
    """The line of the banner: what scores a function, what it reads, and who else can load it."""
    kind, modules = type(base).__name__, ", ".join(head_modules(base))
    if pooling == OWN:
        return f"{modules} of {kind}, by its own forward pass"
    read = {"last": "the last token", "first": "the first token", "mean": "the mean of all tokens"}
    line = f"{modules} on {read[pooling]} of a function"
    return f"{line}; exports bring the code that loads it" if is_backbone(base) else line


def own_logits(model: "PeftModel | PlainModel", batch: Batch, strategy: Strategy) -> Tensor:
    """Logits (S, C) of the model's own forward pass, one function a row."""
    base: Any = model.get_base_model()
    whole: Any = model if is_prompted(model) else base  # PEFT puts its virtual tokens in front

    def run(ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        logits_NC: Tensor = whole(input_ids=ids_NL, attention_mask=mask_NL).logits
        return logits_NC

    pad_id: int = base.config.pad_token_id
    passes = (strategy.num_passes, strategy.most_padding)
    if not base.config.is_encoder_decoder:
        return record_rows(batch, pad_id, *passes).of_records(batch, run)
    end = base.config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    if not len(batch.row_S):  # the heads read the last end token, which padding is not
        batch = replace(batch, input_ids_BT=torch.full_like(batch.input_ids_BT, end))
    rows = record_rows(batch, pad_id, *passes)
    return rows.of_records(batch, lambda ids, mask: _by_ends(ids, mask, end, run))


def _by_ends(
    ids_NL: Tensor, mask_NL: Tensor, end: int, run: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Logits (N, C) of records that may write end tokens inside, too.

    The classes of encoder-decoders take only records with the same number of them together.
    """
    count_N = (ids_NL == end).sum(1)
    order_N = count_N.argsort(stable=True)
    sizes: list[int] = torch.bincount(count_N).tolist()
    pieces = [piece for piece in torch.split(order_N, sizes) if len(piece)]
    logits_NC = torch.cat([run(ids_NL[piece], mask_NL[piece]) for piece in pieces])
    return logits_NC[order_N.argsort()]
