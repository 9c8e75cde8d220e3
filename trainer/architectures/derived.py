"""What transformers' model shows: its linear layers and, on the meta device, sizes of any type."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.architectures.shapes import NUM_CLASSES, Linear, ModelShape
from trainer.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
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
    settings = transformers.AutoConfig.for_model(config.get("model_type"), **values)
    with torch.device("meta"):
        # Sizes alone: config.json may name an attention kernel of a hub, which would be fetched.
        model: PreTrainedModel = kind.from_config(
            settings, trust_remote_code=False, attn_implementation="eager"
        )
    return model


def backbone_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """The part of a model that turns token ids into states; the model itself, if it has no head.

    Llama 4 names it otherwise than its class says.
    """
    from transformers import PreTrainedModel

    named: Any = model.base_model
    if named is not model or model.get_output_embeddings() is None:
        return named
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    whole: PreTrainedModel = inner[0] if len(inner) == 1 else named
    return whole


def is_linear(layer: "nn.Module") -> bool:
    """Whether a layer is linear, GPT-2's transposed one included."""
    from torch import nn

    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def is_conv1d(layer: "nn.Module") -> bool:
    """Whether a layer is GPT-2's transposed linear layer, without importing transformers."""
    return type(layer).__name__ == "Conv1D"


def features(layer: "nn.Module") -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    odd: Any = layer
    if is_conv1d(layer):
        return odd.weight.shape[0], odd.weight.shape[1]
    return odd.in_features, odd.out_features  # the weight of a quantised one is packed


def within_block(name: str) -> str:
    """The path in its block: "h.3.mlp.c_proj" -> "mlp.c_proj"; a name outside blocks stays."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :]) if numbers else name


def _linears(model: "PreTrainedModel") -> tuple[Linear, ...]:
    """The linear layers of the first block."""
    found: dict[str, Linear] = {}
    for name, module in backbone_of(model).named_modules():
        path = within_block(name)
        if path != name and is_linear(module):
            has_bias = getattr(module, "bias", None) is not None
            found.setdefault(path, Linear(path, *features(module), has_bias, path))
    return tuple(found.values())
