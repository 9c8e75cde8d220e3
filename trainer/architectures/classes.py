"""Which class of transformers a base becomes: by its config.json, the task and model.pooling.

Imports transformers inside its functions, so that this room stays without torch.
"""

import copy
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.config.methods import HEAD
from trainer.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN = "own"  # pooling: the model's own forward pass computes the logits, from padded rows
_OTHER_BASE = "take a decoder, e.g. a starcoder2 or qwen2 model"


@dataclass(frozen=True)
class ModelClass:
    """How transformers builds a base.

    Attributes:
        settings: The config of the model that is built: of a multimodal one the text model's.
        pooling: State that our own head scores (last, first, mean); auto: the class has a head.
    """

    auto: Any
    settings: Any
    pooling: str = "auto"
    more: dict[str, Any] = field(default_factory=dict)

    def skeleton(self, attention: str | None = "eager", dtype: Any = None) -> "PreTrainedModel":
        """The model on the meta device: names and shapes, no weights; None: its own attention."""
        import torch

        settings = copy.deepcopy(self.settings)  # transformers writes into it
        # config.json may name an attention kernel of a hub, which would be fetched.
        with torch.device("meta"):
            model: PreTrainedModel = self.auto.from_config(
                settings, trust_remote_code=False, attn_implementation=attention,
                **self.more, **({} if dtype is None else {"dtype": dtype}),
            )  # fmt: skip
        return model


def model_class(config: Any, pooling: str | None) -> ModelClass:
    """Choose the class for a config of transformers; a pooling of None is for a language task.

    Raises:
        ModelError: transformers has no class for the task; the message names what to take.
    """
    text = getattr(config, "text_config", None)
    settings = config if text is None or config.is_encoder_decoder else text
    if pooling is None:
        return _language_class(config, settings)
    return _classifier_class(settings, pooling)


def refuse_language(kind: str, *, is_encoder_decoder: bool) -> ModelError:
    """The error for a type that does not predict the next token of its input."""
    if is_encoder_decoder:
        reason = "an encoder-decoder, and language tasks train decoders alone"
    else:
        reason = (
            "an encoder: each of its tokens sees the later ones, which it would have to predict"
        )
    return ModelError(f"model_type {kind} is {reason}; {_OTHER_BASE}, or task.name=classification")


def _language_class(config: Any, settings: Any) -> ModelClass:
    import transformers

    kind = settings.model_type
    if settings.is_encoder_decoder:
        raise refuse_language(kind, is_encoder_decoder=True)
    is_masked = type(settings) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if is_masked and not getattr(settings, "is_decoder", False):
        raise refuse_language(kind, is_encoder_decoder=False)
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(settings) not in known:
        # Some text models are listed under the whole model's type alone.
        if type(config) not in known or known[type(config)].config_class is not type(settings):
            raise ModelError(
                f"model_type {kind} has no causal language model in transformers; {_OTHER_BASE}"
            )
        settings = config
    if settings is not config:  # the whole model decides whether its output layer is a table's
        settings.tie_word_embeddings = config.tie_word_embeddings
    return ModelClass(transformers.AutoModelForCausalLM, settings)


def _classifier_class(settings: Any, pooling: str) -> ModelClass:
    import transformers

    if type(settings) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        own = ModelClass(transformers.AutoModelForSequenceClassification, settings)
        if pooling == "auto" or (pooling == "last" and scores_last_state(own.skeleton())):
            return own
    auto = transformers.AutoModel
    known = transformers.MODEL_MAPPING
    if settings.is_encoder_decoder:  # only the encoder reads a function as it is
        auto, known = (
            transformers.AutoModelForTextEncoding,
            transformers.MODEL_FOR_TEXT_ENCODING_MAPPING,
        )
    kind = settings.model_type
    if type(settings) not in known:
        remedy = "take another base" if pooling == "auto" else "model.pooling=auto may have one"
        raise ModelError(
            f"model_type {kind} has no model in transformers whose states a head could read"
            f" (model.pooling {pooling}); {remedy}"
        )
    is_masked = type(settings) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    is_decoder = not (is_masked or settings.is_encoder_decoder)
    if pooling == "first" and is_decoder:
        raise ModelError(
            f"model.pooling first: in a decoder ({kind}) the first token sees only itself; take"
            " last or mean"
        )
    if pooling == "auto":
        pooling = "last" if is_decoder else "mean"
    takes = inspect.signature(known[type(settings)]).parameters
    more = {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
    return ModelClass(auto, settings, pooling, more)


def head_modules(base: "PreTrainedModel") -> list[str]:
    """Paths of the modules that turn a classifier's states into logits; none of a language model.

    Raises:
        ModelError: The end of another module's path is the same, so PEFT would train that one, too.
    """
    if base.get_output_embeddings() is not None:
        return []
    backbone: Any = base.base_model
    if backbone is base:
        return [HEAD] if hasattr(base, HEAD) else []
    names = [
        name
        for name, module in base.named_children()
        if module is not backbone and _has_any(module)
    ]
    if _has_any(getattr(backbone, "pooler", None)):
        names.append(f"{base.base_model_prefix}.pooler")
    for path, _ in base.named_modules():
        if path not in names and path.endswith(tuple(names)):
            raise ModelError(
                f"{type(base).__name__}: {path!r} ends as a module of the head ({names}) does, so"
                " PEFT cannot tell them apart; take model.pooling=mean"
            )
    return names


def scores_last_state(base: "PreTrainedModel") -> bool:
    """Whether the class's own head is one linear layer over the state of the last token."""
    from torch import nn

    score: Any = getattr(base, HEAD, None)
    return type(score) is nn.Linear and score.bias is None and head_modules(base) == [HEAD]


def _has_any(module: Any) -> bool:
    return module is not None and next(module.parameters(), None) is not None
