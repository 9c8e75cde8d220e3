"""What a model of transformers shows: its backbone and its linear layers."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import first_line
from trainer.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


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


def forward_fault(
    source: str,
    kind: str,
    error: BaseException,
    remedy: str = "compare the file with the model's source",
) -> ModelError:
    """The error of a model whose own code fails; it names the file that describes it."""
    return ModelError(
        f"{Path(source) / 'config.json'}: the forward pass of transformers' {kind} fails"
        f" ({first_line(error)}); {remedy}, or take another base"
    )


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


def stacked_parameters(base: "nn.Module") -> "dict[str, nn.Parameter]":
    """Path -> parameter of three dimensions: the weights of all experts of a block in one."""
    from torch import nn

    return {
        f"{path}.{name}": parameter
        for path, module in base.named_modules()
        if not isinstance(module, nn.modules.conv._ConvNd)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and parameter.shape[0] > 1
    }


def within_block(name: str) -> str:
    """The path in its block: "h.3.mlp.c_proj" -> "mlp.c_proj"; a name outside blocks stays."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :]) if numbers else name


def numbers_hidden(path: str) -> str:
    """A path with a star for each number: the same for all blocks and experts."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def expert_pattern(name: str) -> str:
    """A path with every number after its block's replaced: the same for all experts of a list."""
    inside = within_block(name)
    return name.removesuffix(inside) + numbers_hidden(inside)
