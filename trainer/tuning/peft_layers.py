"""LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024) and IA3, by PEFT."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from trainer.architectures.adapters import is_feed_forward
from trainer.architectures.classes import head_modules
from trainer.architectures.derived import is_conv1d
from trainer.config.methods import (
    HEAD,
    as_plain,
    choose_lora_backend,
    takes_part_of_base,
    without_start,
)
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.tuning import layers
from trainer.tuning.targets import choose_targets

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_lora(base: "PreTrainedModel", tuning: TuningSection) -> "PeftModel":
    """Freeze the base, add adapters to its linear layers, train them and a classifier's head.

    With "score" among tuning.target_modules the head gets an adapter and is not trained whole.
    """
    from peft import LoraConfig

    takes_part = takes_part_of_base(tuning)
    targets = choose_targets(base, as_plain(tuning) if takes_part else tuning)
    names = targets.modules
    adapted = layers.adapted(base, names)
    settings = LoraConfig(
        task_type=None if HEAD in names else layers.task_type(base),  # else PEFT trains it whole
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=names,
        target_parameters=targets.parameters or None,
        modules_to_save=layers.trained_whole(base, tuning),
        fan_in_fan_out=any(is_conv1d(layer) for layer in adapted.values()),
        use_rslora=tuning.variant == "rslora",
        use_dora=tuning.variant == "dora",
        **without_start(tuning),
    )
    if takes_part or choose_lora_backend(tuning)[0] == "fused":
        # PEFT's own way to give its layers another class.
        settings._register_custom_module(_own_layers(tuning))
    model = layers.with_peft(base, settings)
    if takes_part:
        _check_parts(model)
    if not tuning.peft:  # which can choose among them
        _check_adapted(model, adapted)
    model.left_out_line = targets.left_out_line
    if HEAD in names:
        weight = base.get_submodule(HEAD).base_layer.weight
        model.register_buffer("frozen_head", weight.detach().clone(), persistent=False)
    return model


def _own_layers(tuning: TuningSection) -> dict[type, type]:
    """Class of a layer of the base -> that of ours for it; the first that fits is taken."""
    from transformers.pytorch_utils import Conv1D

    from trainer.tuning.fused_lora import FusedLoraLinear, PartLoraLinear

    if takes_part_of_base(tuning):
        return {nn.Linear: PartLoraLinear, Conv1D: PartLoraLinear}
    fused: dict[type, type] = {nn.Linear: FusedLoraLinear, Conv1D: FusedLoraLinear}
    if tuning.base_quant_type is None:
        return fused
    from bitsandbytes.nn import Linear4bit

    from trainer.tuning.fused_lora_4bit import FusedLora4bit

    return {Linear4bit: FusedLora4bit, **fused}


def add_own_head(model: "PeftModel", folder: Path, state: Mapping[str, Tensor]) -> None:
    """Save the head that PEFT leaves out of an adapter's file; PeftModel.from_pretrained takes it.

    One below an adapter: run.seed drew it, and no base holds it. The buffer of `add_lora` keeps it
    whole when ZeRO shards the parameter. One trained in its place, by methods that train no module
    whole.
    """
    from safetensors.torch import load_file, save_file

    wrapped = "base_model.model."
    own = tuple(f"{wrapped}{path}." for path in head_modules(model.get_base_model()))
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    head = {
        name: state[name].contiguous()
        for name in trained
        if name.startswith(own) and "modules_to_save" not in name and ".lora_" not in name
    }
    if hasattr(model, "frozen_head"):
        head[f"{wrapped}{HEAD}.base_layer.weight"] = model.frozen_head.cpu()
    if head:
        path = folder / "adapter_model.safetensors"
        save_file(load_file(path) | head, path, metadata={"format": "pt"})


def add_ia3(base: "PreTrainedModel", tuning: TuningSection) -> "PeftModel":
    """Freeze the base, scale attention's outputs and what the feed-forward's last layer reads.

    IA3 (Liu et al. 2022) trains a scale for every feature of these layers.
    """
    from peft import IA3Config

    scaled = layers.layers_named(base, layers.choose_modules(base, tuning))
    lasts = {one.path for one in layers.shape_of(base, "ia3").linears if is_feed_forward(one)}
    settings = IA3Config(
        task_type=layers.task_type(base),
        target_modules=list(scaled),
        feedforward_modules=[path for path in scaled if path in lasts],
        modules_to_save=layers.trained_whole(base, tuning),
        fan_in_fan_out=any(is_conv1d(layer) for layer in scaled.values()),
    )
    return layers.with_peft(base, settings)


def _check_parts(model: "PeftModel") -> None:
    """Refuse layers of whose base PEFT itself has taken a part."""
    from peft.tuners.lora import LoraLayer

    from trainer.tuning.fused_lora import PartLoraLinear

    for path, module in model.base_model.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module, PartLoraLinear):
            raise ModelError(
                f"tuning.peft init_lora_weights: {path} is a {type(module).__name__}, and a part of"
                " the base is taken of plain linear layers alone; leave it out of"
                " tuning.target_modules, or remove init_lora_weights"
            )


def _check_adapted(model: "PeftModel", wanted: Iterable[str]) -> None:
    """Refuse a model whose layers are not those that were chosen."""
    whole = model.peft_config["default"].modules_to_save or ()
    expected = {path for path in wanted if not any(part in whole for part in path.split("."))}
    odd = sorted(expected ^ set(model.base_model.targeted_module_names))
    if odd:
        raise ModelError(
            f"tuning.target_modules: PEFT and the recipe differ in {len(odd)} layers, first"
            f" {odd[0]!r}; name other layers"
        )
