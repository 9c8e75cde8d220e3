"""LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024) through PEFT."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from trainer.architectures.adapters import is_named
from trainer.config.methods import HEAD, choose_lora_backend
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.tuning.layers import (
    adapted,
    check_modules,
    choose_modules,
    is_conv1d,
    linear_layers,
    smallest_side,
    task_type,
    with_peft,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_lora(base: "PreTrainedModel", tuning: TuningSection) -> "PeftModel":
    """Freeze the base, add adapters to its linear layers, train them and a classifier's head.

    Args:
        base: A sequence-classification or causal language model.
        tuning: Rank, scale, dropout, names of the layers and of modules trained whole. With "score"
            among the layers the head gets an adapter and is not trained whole.

    Raises:
        ModelError: A name matches no layer, or the rank is above a layer's size.
    """
    from peft import LoraConfig

    names = choose_modules(base, tuning)
    _check_rank(linear_layers(base), names, tuning.lora_r)
    check_modules(base, tuning.modules_to_save)
    layers = adapted(base, names).values()
    settings = LoraConfig(
        task_type=None if HEAD in names else task_type(base),  # else PEFT trains it whole
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=names,
        modules_to_save=list(tuning.modules_to_save) or None,  # a copy: PEFT adds the head to it
        fan_in_fan_out=any(is_conv1d(layer) for layer in layers),
        use_rslora=tuning.variant == "rslora",
        use_dora=tuning.variant == "dora",
    )
    if choose_lora_backend(tuning)[0] == "fused":
        from transformers.pytorch_utils import Conv1D

        from trainer.tuning.fused_lora import FusedLoraLinear

        # PEFT's own way to give its layers another class.
        settings._register_custom_module({nn.Linear: FusedLoraLinear, Conv1D: FusedLoraLinear})
    model = with_peft(base, settings)
    if HEAD in names:
        weight = base.get_submodule(HEAD).base_layer.weight
        model.register_buffer("frozen_head", weight.detach().clone(), persistent=False)
    return model


def add_frozen_head(model: "PeftModel", folder: Path) -> None:
    """Save the head below its adapter too: run.seed drew it, and no base holds it.

    Args:
        model: From `add_lora`; its buffer keeps the whole head when ZeRO shards the parameter.
        folder: The saved adapter.
    """
    from safetensors.torch import load_file, save_file

    if not hasattr(model, "frozen_head"):
        return
    path = folder / "adapter_model.safetensors"
    head = {f"base_model.model.{HEAD}.base_layer.weight": model.frozen_head.cpu()}
    save_file(load_file(path) | head, path, metadata={"format": "pt"})


def _check_rank(layers: dict[str, nn.Module], names: list[str], rank: int) -> None:
    for path, layer in layers.items():
        side = smallest_side(layer)
        if rank > side and any(is_named(path, name) for name in names):
            raise ModelError(
                f"tuning.lora_r {rank} is above the smaller side {side} of {path!r}; lower it"
            )
