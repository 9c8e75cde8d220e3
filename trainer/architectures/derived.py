"""The sizes of a model whose type has no entry, read off transformers' model on the meta device."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.architectures.shapes import NUM_CLASSES, Linear, ModelShape
from trainer.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def derived_shape(config: Mapping[str, Any], *, is_language: bool) -> ModelShape:
    """The shape of any model that transformers builds; parameters are exact, memory is on top.

    What a block keeps of a token is not known here: every layer is taken to read a tensor of its
    own, norms to keep fp32 copies and the activation to keep three.

    Raises:
        ModelError: transformers does not know the type or has no such model of it, or the model
            has no attention.
    """
    model = _without_weights(config, is_language)
    settings: Any = model.config.get_text_config()
    vocabulary, hidden = model.get_input_embeddings().weight.shape
    linears = _linears(model)
    widths = [max(one.inputs, one.outputs) for one in linears]
    num_heads = getattr(settings, "num_attention_heads", None)
    if num_heads is None:
        raise ModelError(f"model_type {settings.model_type!r} has no attention heads; take another")
    head_size = getattr(settings, "head_dim", None) or hidden // num_heads
    head = "classes"
    if is_language:
        head = "tied" if settings.tie_word_embeddings else "vocabulary"
    shape = ModelShape(
        num_layers=settings.num_hidden_layers,
        hidden=hidden,
        inner=getattr(settings, "intermediate_size", None) or max([hidden, *widths]),
        num_heads=num_heads,
        head_size=head_size,
        kv_size=(getattr(settings, "num_key_value_heads", None) or num_heads) * head_size,
        vocabulary=vocabulary,
        positions=0,
        linears=linears,
        num_norm_weights=hidden,
        dropout=getattr(settings, "resid_pdrop", getattr(settings, "hidden_dropout", 0.0)) or 0.0,
        attention_dropout=getattr(settings, "attention_dropout", 0.0) or 0.0,
        activation_copies=3,
        has_fp32_norms=True,
        repeats_keys=True,
        head=head,
    )
    unlisted = sum(p.numel() for p in model.parameters()) - shape.num_parameters
    return replace(shape, num_unlisted_parameters=unlisted)


def _without_weights(config: Mapping[str, Any], is_language: bool) -> "PreTrainedModel":
    import torch
    import transformers

    values = {key: value for key, value in config.items() if key != "model_type"}
    kind = transformers.AutoModelForCausalLM
    if not is_language:
        kind = transformers.AutoModelForSequenceClassification
        values["num_labels"] = NUM_CLASSES
    try:
        settings = transformers.AutoConfig.for_model(config.get("model_type"), **values)
        with torch.device("meta"):
            model: PreTrainedModel = kind.from_config(settings, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model_type {config.get('model_type')!r}: transformers builds no such model: {error}"
        ) from error
    return model


def _linears(model: "PreTrainedModel") -> tuple[Linear, ...]:
    """The linear layers of the first block."""
    from torch import nn

    found: dict[str, Linear] = {}
    for name, module in model.base_model.named_modules():
        parts = name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        weight = getattr(module, "weight", None)
        is_conv1d = type(module).__name__ == "Conv1D"
        if not numbers or not (isinstance(module, nn.Linear) or is_conv1d) or weight is None:
            continue
        path = ".".join(parts[numbers[0] + 1 :])
        sizes = tuple(weight.shape) if is_conv1d else tuple(weight.shape)[::-1]
        has_bias = getattr(module, "bias", None) is not None
        found.setdefault(path, Linear(path, sizes[0], sizes[1], has_bias, path))
    return tuple(found.values())
