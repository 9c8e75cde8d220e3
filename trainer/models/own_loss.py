"""Proof that the fused loss of a language model equals the loss of the model's own forward.

Some architectures scale or cap the logits after their output layer (Granite, Cohere, Gemma 2). The
fused loss uses only the layer, so it would train such a model on another function.
"""

import numpy as np
import torch
from torch import Tensor, nn

from data.batches.batch import Batch, collate
from data.text.tokenization import ExampleSet
from trainer.errors import ModelError
from trainer.models.heads import PackedLanguageModel
from trainer.models.packed_attention import attention_inputs
from trainer.tuning.ptuning import is_prompted

_MOST_TOKENS = 64
_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.01}  # relative to the largest nll
_CAPS = ("final_logit_softcapping",)  # felt by large logits alone, so not by every example


def check_own_loss(
    forward: nn.Module, examples: ExampleSet, device: torch.device, precision: str
) -> None:
    """Compare the scores of one short example with the logits of transformers, on all ranks.

    `forward` is the engine over a PackedLanguageModel, in evaluation mode.

    Raises:
        ModelError: They differ.
    """
    model = forward.module
    assert isinstance(model, PackedLanguageModel)
    if is_prompted(model.model):  # transformers' own forward knows no virtual tokens
        return
    with torch.no_grad():
        batch = collate(_one_short(examples), [np.array([0])]).to(device)
        ours_S = forward(batch)[:, 0]
        own_S = _own_nll(model, batch)
    difference = float((ours_S - own_S).abs().max() / own_S.abs().max().clamp(min=1.0))
    config = model.model.get_base_model().config
    caps = [name for name in _CAPS if getattr(config, name, None)]
    if caps or not difference <= _TOLERANCE[precision]:
        raise ModelError(
            f"{config.model_type}: the loss of the output layer alone is not that of the model's"
            f" own forward (relative difference {difference:.1e}{', ' + caps[0] if caps else ''}):"
            " it changes its logits, which no loss here knows; take another base"
        )


def _own_nll(model: PackedLanguageModel, batch: Batch) -> Tensor:
    whole = model.model.get_base_model()
    logits_BTV = whole(
        input_ids=batch.input_ids_BT, **attention_inputs(batch, model.attention, whole.dtype)
    ).logits
    chances_SV = logits_BTV[batch.row_S, batch.read_S].float().log_softmax(-1)
    nll_S: Tensor = -chances_SV.gather(1, batch.labels_S[:, None])[:, 0]
    return nll_S


def _one_short(examples: ExampleSet) -> ExampleSet:
    """The beginning of the first example that has targets, all of it supervised."""
    first = int(np.argmax(examples.count_E > 0))
    tokens = np.array(examples.subset(np.array([first])).tokens[:_MOST_TOKENS], np.int32)
    return ExampleSet(
        tokens=tokens,
        starts=np.array([0, len(tokens)]),
        record_E=np.zeros(1, np.int64),
        label_E=np.zeros(1, np.int8),
        share_E=np.ones(1),
        weight_E=np.ones(1, np.float32),
        num_records=1,
        supervised=np.ones(len(tokens), np.bool_),
    )
