"""Sizes of any type that transformers builds, read off its model on the meta device."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.errors import first_line, parsing
from data.text.terminal import step
from trainer.architectures.classes import head_modules, model_class
from trainer.architectures.derived import (
    backbone_of,
    features,
    is_linear,
    stacked_parameters,
    within_block,
)
from trainer.architectures.shapes import (
    ATTENTION,
    AUTO,
    NUM_CLASSES,
    WIDTHS,
    Kept,
    Linear,
    ModelShape,
    PerToken,
)
from trainer.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainer.architectures.traced import Trace

_HUB = ("attn_implementation", "_attn_implementation")  # may name a kernel, which would be fetched


@step("reading sizes and layers off the model")
def derived_shape(
    config: Mapping[str, Any],
    pooling: str | None,
    method: str = "lora",
    num_classes: int = NUM_CLASSES,
) -> ModelShape:
    """The shape of any model that transformers builds; parameters are exact.

    Where its code needs values to be built or run, which the meta device lacks, the shape says so.

    Args:
        pooling: model.pooling of a classifier; None: it becomes a language model.
        method: tuning.method; full trains norms, biases and stacked experts, too, and the roles of
            layers are looked for where the method needs them.
        num_classes: Of a classifier.

    Raises:
        ModelError: transformers does not know the type, or has no such model of it.
    """
    settings = transformers_config(config)
    settings.num_labels = num_classes
    try:
        model = model_class(settings, pooling).skeleton(None)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        why = f"transformers needs values ({first_line(error)})"
        return _unknown(settings.get_text_config(), pooling is None, why)
    backbone, sizes = backbone_of(model), model.config
    num_all = sum(p.numel() for p in model.parameters())
    heads = [model.get_submodule(path) for path in head_modules(model)] if pooling else []
    if not pooling:
        num_head = num_all - sum(p.numel() for p in backbone.parameters())
    else:
        num_head = sum(p.numel() for one in heads for p in one.parameters())
    table: Any = backbone.get_input_embeddings()
    shape = ModelShape(
        num_layers=getattr(sizes, "num_hidden_layers", 1),
        hidden=getattr(sizes, "hidden_size", table.weight.shape[1]),
        vocabulary=table.weight.shape[0],
        positions=learned_positions(backbone),
        linears=_linears(backbone),
        num_backbone_parameters=num_all - num_head,
        num_head_parameters=num_head,
        num_classes=num_classes,
        head="classes" if pooling else "vocabulary" if num_head else "tied",
        widest=PerToken(),
        kept={},
        mask_bytes=sum(buffer.nbytes for buffer in backbone.buffers()),
    )
    try:
        shape = _watched(shape, backbone, method)
    except Exception as error:
        why = f"{type(backbone).__name__} needs values ({first_line(error)})"
        shape = replace(_guessed(shape), doubt=f"activations by a rule of thumb: {why}")
    if model is backbone:  # the head is ours
        shape = replace(shape, num_head_parameters=num_classes * shape.hidden)
    return shape


def learned_positions(backbone: "PreTrainedModel") -> int:
    """Longest record that a table of positions allows; 0 where the model has none.

    RoBERTa's begins with rows that no token uses: those up to the row of the padding.
    """
    from torch import nn

    most = getattr(backbone.config, "max_position_embeddings", None)
    words: Any = backbone.get_input_embeddings()
    for table in backbone.modules():
        if isinstance(table, nn.Embedding) and table.weight is not words.weight and most:
            unused = 0 if table.padding_idx is None else table.padding_idx + 1
            if table.num_embeddings >= most:
                return int(min(most, table.num_embeddings - unused))
    return 0


def _watched(shape: ModelShape, backbone: "PreTrainedModel", method: str) -> ModelShape:
    """The shape with what forward passes on the meta device show."""
    import torch

    from trainer.architectures.roles import roles_of
    from trainer.architectures.traced import LENGTHS, kept_by, traced

    backbone.train().requires_grad_(method == "full")
    for module in backbone.modules():  # what these keep depends on the tuning method
        if is_linear(module):
            module.weight.requires_grad_(False)
    roles = roles_of(backbone) if method in AUTO else {}
    kept: dict[int, Kept] = {}
    for width, dtype in zip(WIDTHS, (torch.bfloat16, torch.float32), strict=True):
        backbone.to(dtype)
        short, long = (traced(backbone, length) for length in LENGTHS)
        kept[width], masks, widest = kept_by(short, long, shape.num_layers)
    in_linears = max((max(one.inputs, one.outputs) for one in shape.linears), default=0)
    return replace(
        shape,
        num_layers=long.num_blocks or shape.num_layers,
        hidden=long.hidden,
        linears=tuple(
            replace(one, roles=roles.get(one.path, one.roles)) for one in _linears(backbone, long)
        ),
        num_expert_weights=_expert_weights(backbone, long),
        kept=kept,
        num_dropped=PerToken(masks.each / width, masks.growing / width),
        widest=PerToken(max(widest.each / width, in_linears), widest.growing / width),
        attention=long.attention,
    )


def _guessed(shape: ModelShape) -> ModelShape:
    """Rule of thumb: norms in fp32, four states of attention and three of the activation."""
    widest = max([shape.hidden, *(max(one.inputs, one.outputs) for one in shape.linears)])
    norm = 4 * shape.hidden + 4
    kept = {
        width: Kept(
            PerToken(shape.num_layers * (2 * norm + width * (4 * shape.hidden + 3 * widest))),
            shape.num_layers,
            once=width * shape.hidden,
            first=norm,
        )
        for width in WIDTHS
    }
    return replace(shape, kept=kept, widest=PerToken(widest))


def _unknown(settings: Any, is_language: bool, why: str) -> ModelShape:
    """A shape without parameters."""
    return _guessed(
        ModelShape(
            num_layers=getattr(settings, "num_hidden_layers", 1),
            hidden=getattr(settings, "hidden_size", 1),
            vocabulary=getattr(settings, "vocab_size", 1),
            positions=0,
            linears=(),
            num_backbone_parameters=0,
            head="vocabulary" if is_language else "classes",
            widest=PerToken(),
            kept={},
            doubt=f"memory is not known: {why}",
        )
    )


def transformers_config(config: Mapping[str, Any]) -> Any:
    """transformers' config of a config.json.

    Raises:
        ModelError: transformers does not know the type, or refuses a value.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    with not_built(config):
        values = _read({key: value for key, value in config.items() if key != "model_type"})
        return transformers.AutoConfig.for_model(config.get("model_type"), **values)


def not_built(config: Mapping[str, Any]) -> AbstractContextManager[None]:
    """The boundary around what reads a config.json."""
    what = f"model_type {config.get('model_type')!r}: transformers builds no such model"
    return parsing(what, ModelError, "take another, or fetch config.json again")


def _read(value: Any) -> Any:
    """A value of config.json, in which {"__float__": "Infinity"} is a number that JSON lacks."""
    if isinstance(value, list):
        return [_read(one) for one in value]
    if not isinstance(value, dict):
        return value
    special = value.get("__float__")
    return float(special) if special else {k: _read(v) for k, v in value.items() if k not in _HUB}


def _linears(backbone: "PreTrainedModel", trace: "Trace | None" = None) -> tuple[Linear, ...]:
    """The linear layers of the blocks; those of several blocks with one path and size are one."""
    places: dict[Linear, list[str]] = {}
    for name, module in backbone.named_modules():
        path = within_block(name)
        if path != name and is_linear(module):
            has_bias = getattr(module, "bias", None) is not None
            linear = Linear(path, *features(module), has_bias, path, 0)
            places.setdefault(linear, []).append(name)
    readers: dict[int, str] = {}  # by the address of what is read
    return tuple(
        replace(one, times=len(names), **(_reading(one, names, trace, readers) if trace else {}))
        for one, names in places.items()
    )


def _reading(
    linear: Linear, names: list[str], trace: "Trace", readers: dict[int, str]
) -> dict[str, Any]:
    """What a layer reads where it is first called, and whether that is kept anyway."""
    addresses = [trace.reads[name] for name in names if name in trace.reads]
    if not addresses:
        return {"reads": None}
    if addresses[0] in trace.attended:
        return {"reads": ATTENTION}
    reads = readers.setdefault(addresses[0], linear.path)
    return {"reads": reads, "is_kept": addresses[0] in trace.storages}


def _expert_weights(backbone: "PreTrainedModel", trace: "Trace") -> float:
    """Weights of stacked experts that a token meets."""
    met = trace.experts
    weights = (
        parameter.numel() / parameter.shape[0] * met.get(name.rpartition(".")[0], 0)
        for name, parameter in stacked_parameters(backbone).items()
    )
    return float(sum(weights))
