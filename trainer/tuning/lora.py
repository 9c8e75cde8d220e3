"""LoRA (Hu et al. 2021) through PEFT, in the layout every PEFT user can load."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from trainer.config import TuningSection
from trainer.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def add_lora(base: "PreTrainedModel", tuning: TuningSection) -> "PeftModel":
    """Freeze the base, add adapters to its linear layers, train them and a new head.

    Args:
        base: A sequence-classification or causal language model.
        tuning: Rank, scale, dropout, the names of the layers and of modules trained whole.

    Raises:
        ModelError: A name matches no layer, or the rank is above a layer's size.
        ConfigError: The fused layer is asked for and does not fit.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    layers = linear_layers(base)
    targets = sorted(set(layers)) if tuning.target_modules == "auto" else tuning.target_modules
    _check_targets(layers, targets, tuning.lora_r)
    _check_modules(base, tuning.modules_to_save)
    transposed = any(type(layer).__name__ == "Conv1D" for layer in layers.values())
    settings = LoraConfig(
        task_type=TaskType.SEQ_CLS if hasattr(base, "score") else TaskType.CAUSAL_LM,
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=list(targets),
        modules_to_save=list(tuning.modules_to_save) or None,  # a copy: PEFT adds the head to it
        fan_in_fan_out=transposed,
    )
    adapted = [m for n, m in base.base_model.named_modules() if n.rpartition(".")[2] in targets]
    if choose_lora_backend(tuning.lora_backend, settings, adapted)[0] == "fused":
        from transformers.pytorch_utils import Conv1D

        from trainer.tuning.fused_lora import FusedLoraLinear

        # PEFT's own way to give its layers another class.
        settings._register_custom_module({nn.Linear: FusedLoraLinear, Conv1D: FusedLoraLinear})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        model: PeftModel = get_peft_model(base, settings)
    return model


def choose_lora_backend(
    wanted: str, settings: "LoraConfig", layers: Iterable[nn.Module]
) -> tuple[str, str]:
    """What computes the adapted layers, and the reason for it.

    Args:
        wanted: tuning.lora_backend of the recipe.
        settings: What PEFT is told.
        layers: The layers under the adapters.

    Raises:
        ConfigError: The fused layer is asked for and does not fit.
    """
    from transformers.pytorch_utils import Conv1D

    # Not isinstance: quantised layers are nn.Linear by inheritance.
    kinds = {type(layer) for layer in layers} - {nn.Linear, Conv1D}
    odd = [f"layers of type {name}" for name in sorted(kind.__name__ for kind in kinds)]
    odd += [name for name in ("use_dora", "lora_bias") if getattr(settings, name)]
    odd += ["trained biases"] if settings.bias != "none" else []
    if wanted == "peft":
        return wanted, "asked for"
    if not odd:
        return "fused", "plain linear layers: no copy of the activations, no fp32 of them"
    if wanted == "fused":
        raise ConfigError(
            f"tuning.lora_backend fused does not know {', '.join(odd)}; take auto or peft"
        )
    return "peft", f"the fused layer does not know {', '.join(odd)}"


def lora_backend(model: "PeftModel", wanted: str) -> tuple[str, str]:
    """`choose_lora_backend` of a model with its adapters."""
    from peft.tuners.lora import LoraLayer

    layers = [m.get_base_layer() for m in model.modules() if isinstance(m, LoraLayer)]
    return choose_lora_backend(wanted, model.peft_config["default"], layers)


def linear_layers(base: "PreTrainedModel") -> dict[str, nn.Module]:
    """One layer for each distinct last name of the backbone's linear layers, the smallest."""
    layers: dict[str, nn.Module] = {}
    for name, module in base.base_model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            last = name.rpartition(".")[2]
            if last not in layers or _smallest_side(module) < _smallest_side(layers[last]):
                layers[last] = module
    return layers


def _check_targets(layers: dict[str, nn.Module], targets: list[str], rank: int) -> None:
    for target in targets:
        if target not in layers:
            raise ModelError(
                f"tuning.target_modules: {target!r} matches no linear layer of the model;"
                f" it has {sorted(layers)}"
            )
        side = _smallest_side(layers[target])
        if rank > side:
            raise ModelError(
                f"tuning.lora_r {rank} is above the smaller side {side} of {target!r}; lower it"
            )


def _check_modules(base: "PreTrainedModel", names: list[str]) -> None:
    present = {name.rpartition(".")[2] for name, _ in base.base_model.named_modules()} - {""}
    for name in names:
        if name not in present:
            raise ModelError(
                f"tuning.modules_to_save: {name!r} matches no module; the model has"
                f" {sorted(part for part in present if not part.isdigit())}"
            )


def _smallest_side(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):  # the weight of a quantised one is packed
        return min(layer.in_features, layer.out_features)
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return min(weight.shape)
