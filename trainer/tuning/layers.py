"""What of a model is adapted, trained whole or left alone; faults are named before it trains."""

from typing import TYPE_CHECKING, Any

from torch import nn

from trainer.architectures.targets import auto_targets, is_named
from trainer.config.methods import HEAD
from trainer.config.sections import TuningSection
from trainer.errors import ModelError

if TYPE_CHECKING:
    from peft import TaskType
    from transformers import PreTrainedModel


def task_type(base: "PreTrainedModel") -> "TaskType":
    """PEFT's word for what the model is for: it trains and saves the head of a classifier."""
    from peft import TaskType

    return TaskType.SEQ_CLS if has_head(base) else TaskType.CAUSAL_LM


def has_head(base: nn.Module) -> bool:
    """Whether the model is a classifier."""
    return isinstance(getattr(base, HEAD, None), nn.Module)


def linear_layers(base: "PreTrainedModel") -> dict[str, nn.Module]:
    """The backbone's linear layers by their path within a block, the smallest of each path."""
    layers: dict[str, nn.Module] = {}
    for name, module in base.base_model.named_modules():
        if isinstance(module, nn.Linear) or is_conv1d(module):
            path = _within_block(name)
            if path not in layers or smallest_side(module) < smallest_side(layers[path]):
                layers[path] = module
    return layers


def choose_targets(base: "PreTrainedModel", tuning: TuningSection) -> list[str]:
    """Names of the layers to adapt, of a base without adapters; the head is for LoRA alone.

    Raises:
        ModelError: A name matches nothing, or auto is not known for the architecture.
    """
    layers, method = linear_layers(base), tuning.method
    kind = base.config.model_type
    if tuning.target_modules != "auto":
        if method in ("lora", "qlora") and has_head(base):
            layers |= {HEAD: base.get_submodule(HEAD)}
        for target in tuning.target_modules:
            _check_target(target, layers)
        return list(tuning.target_modules)
    if method in ("lora", "qlora"):
        return sorted({path.rpartition(".")[2] for path in layers})
    targets = auto_targets(method, kind)
    if targets is None:
        raise ModelError(
            f"tuning.target_modules auto is not known for {method} on {kind}; name the layers: the"
            f" model has {sorted(layers)}"
        )
    return list(targets)


def targets_reason(tuning: TuningSection, model_type: str) -> str:
    """Why `choose_targets` took what it took."""
    if tuning.target_modules != "auto":
        return "asked for"
    if tuning.method in ("lora", "qlora"):
        return "auto: every linear layer"
    return f"auto: {tuning.method} on {model_type}"


def target_paths(base: "PreTrainedModel", targets: list[str]) -> dict[str, nn.Module]:
    """`linear_layers` that are meant by targets: "c_proj" can be attention's and the MLP's."""
    return {
        path: layer
        for path, layer in linear_layers(base).items()
        if any(is_named(path, target) for target in targets)
    }


def adapted(base: "PreTrainedModel", targets: list[str]) -> dict[str, nn.Module]:
    """Every layer that the names mean, by its name in the whole model."""
    return {
        name: module
        for name, module in base.named_modules()
        if (isinstance(module, nn.Linear) or is_conv1d(module))
        and any(is_named(name, target) for target in targets)
    }


def check_modules(base: "PreTrainedModel", names: list[str]) -> None:
    """Refuse modules_to_save that are not there.

    Raises:
        ModelError: With what the model has.
    """
    present = {name.rpartition(".")[2] for name, _ in base.named_modules()} - {""}
    for name in names:
        if name not in present:
            raise ModelError(
                f"tuning.modules_to_save: {name!r} matches no module; the model has"
                f" {sorted(part for part in present if not part.isdigit())}"
            )


def is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer is GPT-2's transposed one, without importing transformers."""
    return type(layer).__name__ == "Conv1D"


def features(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if isinstance(layer, nn.Linear):  # the weight of a quantised one is packed
        return layer.in_features, layer.out_features
    weight: Any = layer.weight
    return weight.shape[0], weight.shape[1]


def smallest_side(layer: nn.Module) -> int:
    """The smaller of inputs and outputs."""
    return min(features(layer))


def _check_target(target: str, layers: dict[str, nn.Module]) -> None:
    if not any(is_named(path, target) for path in layers):
        raise ModelError(
            f"tuning.target_modules: {target!r} matches no linear layer of the model; it has"
            f" {sorted(layers)}, which end in {sorted({p.rpartition('.')[2] for p in layers})}"
        )


def _within_block(name: str) -> str:
    """A path in its block, "mlp.c_proj" of "h.3.mlp.c_proj"; a name outside of blocks stays."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :]) if numbers else name
