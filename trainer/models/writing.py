"""One pass of a language model over the texts it goes on with: over all of them, or new tokens.

With a cache a pass reads only the tokens that the passes before it have not seen. Texts of several
lengths are padded on the left, so that all end in the same column.

N texts, L tokens of a pass, T tokens so far, P virtual tokens of P-Tuning, D hidden.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.architectures.derived import backbone_of
from trainer.models.output import without_cache
from trainer.tuning.ptuning import is_prefixed, num_virtual, prefix, virtual_tokens

if TYPE_CHECKING:
    from peft import PeftModel

    from trainer.tuning.plain import PlainModel

CACHE = "past_key_values"  # as models take and give it


@dataclass
class Texts:
    """What a pass reads.

    Attributes:
        ids_NL: Tokens that are new to the model, padded on the left in the first pass.
        mask_NT: 1 for each token so far, 0 for padding; virtual tokens are not in it.
        is_kept: The pass leaves a cache for the next one.
        cache: What the passes before have left; a pass changes it.
    """

    ids_NL: Tensor
    mask_NT: Tensor
    is_kept: bool = True
    cache: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, texts: Sequence[Sequence[int]], device: torch.device, *, is_kept: bool = True
    ) -> "Texts":
        """Token ids of whole texts, none empty."""
        longest = max(map(len, texts))
        rows = [[0] * (longest - len(text)) + list(text) for text in texts]
        masks = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
        return cls(torch.tensor(rows).to(device), torch.tensor(masks).to(device), is_kept)

    def followed_by(self, ids_NL: Tensor) -> "Texts":
        """The next pass of the same texts, over these tokens alone."""
        mask_NT = nn.functional.pad(self.mask_NT, (0, ids_NL.shape[1]), value=1)
        return Texts(ids_NL, mask_NT, self.is_kept, self.cache)


def has_cache(model: "PeftModel | PlainModel") -> bool:
    """Whether a model's forward pass takes what an earlier one has left."""
    backbone = backbone_of(model.get_base_model())
    return CACHE in inspect.signature(backbone.forward).parameters


def last_states(model: "PeftModel | PlainModel", texts: Texts) -> Tensor:
    """The last hidden state (N, D) of each text."""
    base = model.get_base_model()
    backbone, embeddings = backbone_of(base), base.get_input_embeddings()
    prompt_1PD, mask_NT = virtual_tokens(model), texts.mask_NT
    given: dict[str, Any] = {"input_ids": texts.ids_NL}
    if is_prefixed(model):
        mask_NT = nn.functional.pad(mask_NT, (num_virtual(model), 0), value=1)
    if prompt_1PD is not None:
        mask_NT = nn.functional.pad(mask_NT, (prompt_1PD.shape[1], 0), value=1).sort(-1).values
        if not texts.cache:
            given = {"inputs_embeds": _prompted(prompt_1PD[0], embeddings(texts.ids_NL), texts)}
    given["attention_mask"] = mask_NT
    num_new = next(iter(given.values())).shape[1]
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        given["position_ids"] = (mask_NT.cumsum(-1) - 1).clamp(min=0)[:, -num_new:]
    before = texts.cache or prefix(model, len(texts.ids_NL))
    kept = {"use_cache": True} if texts.is_kept else without_cache(backbone)
    outputs = backbone(**given, **kept, **before)
    if texts.is_kept:
        if outputs.get(CACHE) is None:
            raise NotImplementedError(f"{type(backbone).__name__} gives no cache")
        texts.cache[CACHE] = outputs[CACHE]
    states_ND: Tensor = outputs.last_hidden_state[:, -1]
    return states_ND


def _prompted(prompt_PD: Tensor, tokens_NLD: Tensor, texts: Texts) -> Tensor:
    """Embeddings (N, P + L, D) in which virtual tokens stand between padding and text."""
    rows = []
    for tokens_LD, mask_L in zip(tokens_NLD, texts.mask_NT.tolist(), strict=True):
        padding = mask_L.index(1)
        parts = [tokens_LD[:padding], prompt_PD.to(tokens_LD.dtype), tokens_LD[padding:]]
        rows.append(torch.cat(parts))
    return torch.stack(rows)
