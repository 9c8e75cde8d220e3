"""Which layers of a model are adapted, trained whole or frozen; faults are raised at the start."""

import warnings
from typing import TYPE_CHECKING

from torch import nn

from data.errors import parsing
from trainer.architectures.adapters import auto_modules, is_named
from trainer.architectures.classes import head_modules
from trainer.architectures.derived import backbone_of, features, is_linear, within_block
from trainer.architectures.families import model_shape
from trainer.architectures.shapes import ModelShape
from trainer.config.methods import HEAD, LORA
from trainer.config.sections import TuningSection
from trainer.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel, TaskType
    from transformers import PreTrainedModel

_PEFT_HEADS = ("classifier", HEAD)


def task_type(base: "PreTrainedModel") -> "TaskType":
    """PEFT's task type, by which it trains and saves the head of a classifier."""
    from peft import TaskType

    return TaskType.SEQ_CLS if head_modules(base) else TaskType.CAUSAL_LM


def with_peft(
    base: "PreTrainedModel",
    settings: "PeftConfig",
    remedy: str = "name other layers in tuning.target_modules",
) -> "PeftModel":
    """Freeze the base and add the adapters that the settings describe.

    Raises:
        ModelError: PEFT does not know a layer.
    """
    from peft import get_peft_model

    with parsing("PEFT adds no adapters", ModelError, remedy), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # What PEFT has not tried is proved at the start; boft has a kernel without CUDA, too.
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        warnings.filterwarnings("ignore", message="Failed to load the CUDA extension")
        model: PeftModel = get_peft_model(base, settings)
    return model


def linear_layers(base: "PreTrainedModel") -> dict[str, nn.Module]:
    """Path within a block -> linear layer of the backbone, the smallest with that path."""
    layers: dict[str, nn.Module] = {}
    of_head = {layer for path in head_modules(base) for layer in base.get_submodule(path).modules()}
    for name, module in backbone_of(base).named_modules():
        if is_linear(module) and module not in of_head:
            path = within_block(name)
            layers[path] = min(layers.get(path, module), module, key=lambda one: min(features(one)))
    return layers


def choose_modules(base: "PreTrainedModel", tuning: TuningSection) -> list[str]:
    """Names of the layers that IA3 or bottlenecks adapt in a base without adapters.

    Raises:
        ModelError: A name matches no layer, or auto is unknown for the architecture.
    """
    layers, method = linear_layers(base), tuning.method
    kind = base.config.model_type
    if tuning.target_modules != "auto":
        for name in tuning.target_modules:
            check_named(name, sorted(layers))
        return list(tuning.target_modules)
    names = auto_modules(shape_of(base, method), method)
    if names is None:
        raise ModelError(
            f"tuning.target_modules auto is not known for {method} on {kind}; name the layers: the"
            f" model has {sorted(layers)}"
        )
    return names


def shape_of(base: "PreTrainedModel", method: str) -> ModelShape:
    """The sizes of a base's layers, and their roles where a method needs them."""
    return model_shape(base.config.to_dict(), method=method)


def modules_reason(tuning: TuningSection, model_type: str) -> str:
    """Why `choose_modules` chose its layers."""
    if tuning.target_modules != "auto":
        return "set by the recipe"
    if tuning.method in LORA:
        return "auto: every linear layer"
    return f"auto: {tuning.method} on {model_type}"


def layers_named(base: "PreTrainedModel", names: list[str]) -> dict[str, nn.Module]:
    """The `linear_layers` with these names: "c_proj" can be attention's and the MLP's."""
    return {
        path: layer
        for path, layer in linear_layers(base).items()
        if any(is_named(path, name) for name in names)
    }


def adapted(base: "PreTrainedModel", names: list[str]) -> dict[str, nn.Module]:
    """Every layer with one of these names, by its path in the whole model."""
    return {
        path: module
        for path, module in base.named_modules()
        if is_linear(module) and any(is_named(path, name) for name in names)
    }


def trained_whole(base: "PreTrainedModel", tuning: TuningSection) -> list[str] | None:
    """tuning.modules_to_save and what PEFT does not find of a head itself; None where empty.

    Raises:
        ModelError: The model lacks one; the message lists the modules of the model.
    """
    present = {name.rpartition(".")[2] for name, _ in base.named_modules()} - {""}
    for name in tuning.modules_to_save:
        if name not in present:
            raise ModelError(
                f"tuning.modules_to_save: {name!r} matches no module; the model has"
                f" {sorted(part for part in present if not part.isdigit())}"
            )
    heads = [path for path in head_modules(base) if path not in _PEFT_HEADS]
    return [*tuning.modules_to_save, *heads] or None


def check_named(name: str, paths: list[str]) -> None:
    """Refuse a name that none of these paths ends in."""
    if not any(is_named(path, name) for path in paths):
        raise ModelError(
            f"tuning.target_modules: {name!r} matches no linear layer of the model; it has"
            f" {paths}, which end in {sorted({path.rpartition('.')[2] for path in paths})}"
        )
