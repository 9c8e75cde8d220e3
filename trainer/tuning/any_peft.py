"""Any method of PEFT by its name: its config class takes tuning.peft and the adapted layers.

Nothing is known here of a method but what its config class has. That it works on this model is
proved at the start (trainer/models/proof.py) and by the first step (trainer/engine/gradients.py).
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.architectures.adapters import is_named
from trainer.architectures.classes import head_modules
from trainer.architectures.derived import backbone_of, is_conv1d
from trainer.config.methods import PROMPTS, num_virtual_tokens
from trainer.config.peft_methods import peft_class
from trainer.config.sections import OWN_METHODS, TuningSection
from trainer.errors import ModelError
from trainer.tuning import layers
from trainer.tuning.targets import choose_targets

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_REMEDY = (
    "set what it asks for in tuning.peft, name other layers in tuning.target_modules, or take"
    " tuning.method=lora"
)
_STIRRED = 0.05  # deviation of what is added to every trained weight
_NORMS = ("ln_tuning",)  # adapt norms, not linear layers
_OWN_LAYERS = ("trainable_tokens", "adaption_prompt")  # PEFT finds them
NOT_LINEAR = (*_NORMS, *_OWN_LAYERS)


def add_peft(base: "PreTrainedModel", tuning: TuningSection) -> "PeftModel":
    """Freeze the base and add the adapters of tuning.method, with tuning.peft.

    tuning.target_modules auto takes the layers that LoRA's auto takes, or those that the method is
    for.

    Raises:
        ModelError: PEFT refuses a layer or an argument.
    """
    kind = peft_class(tuning.method)
    assert kind is not None  # the recipe was checked
    fields = {field.name for field in dataclasses.fields(kind)}
    arguments: dict[str, Any] = dict(tuning.peft)
    targets = None
    if "target_modules" in fields:
        arguments["target_modules"], targets = _targets(base, tuning)
    whole = layers.trained_whole(base, tuning)
    if whole and "modules_to_save" not in fields:
        raise ModelError(
            f"tuning.modules_to_save {whole}: PEFT's {tuning.method} trains nothing whole beside"
            " its adapters; remove it, or take tuning.method=lora"
        )
    if whole:
        arguments["modules_to_save"] = whole
    if "fan_in_fan_out" in fields:
        arguments["fan_in_fan_out"] = any(is_conv1d(module) for module in base.modules())
    if tuning.method in PROMPTS:
        arguments["num_virtual_tokens"] = num_virtual_tokens(tuning)
    if "num_frozen_tokens" in fields:
        arguments["num_frozen_tokens"] = 0  # the adapter holds what is trained
    settings = kind(task_type=layers.task_type(base), **arguments)
    model = layers.with_peft(base, settings, _REMEDY)
    if "modules_to_save" not in fields:  # PEFT wraps no head: it is trained in its place
        for path in head_modules(base):
            base.get_submodule(path).requires_grad_(True)
    model.left_out_line = targets.left_out_line if targets is not None else ""
    return model


def is_any(model: nn.Module) -> bool:
    """Whether a model has adapters of a method that only its own proof knows."""
    settings = getattr(model, "peft_config", {}).get("default")
    kind = getattr(getattr(settings, "peft_type", None), "value", "lora").lower()
    return kind not in (*OWN_METHODS, "p_tuning")


def unloaded(model: Any) -> "PreTrainedModel":
    """The model of transformers; PEFT's own unload leaves wrapped what some methods train whole."""
    base: Any = model.unload()
    for path, module in list(base.named_modules()):
        if hasattr(module, "unload_and_optionally_merge_module"):
            parent, _, name = path.rpartition(".")
            whole = module.unload_and_optionally_merge_module(
                merge=True, safe_merge=False, adapter_names=None
            )
            setattr(base.get_submodule(parent), name, whole)
    return base


def names_of(model: nn.Module) -> dict[str, list[str]]:
    """The first name of each parameter -> all that it has: methods share some between layers."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return names


@contextmanager
def stirred(model: nn.Module) -> Iterator[None]:
    """Every trained weight moved a little, the same on every rank, and put back to the last bit.

    Fresh adapters mostly change nothing, and what changes nothing mixes nothing: a proof needs
    adapters that act. Under ZeRO 3 a rank moves its shards, by numbers of its own: moved alike, the
    halves of a weight that holds two experts would be equal.
    """
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    of_whole, of_shard = (torch.Generator().manual_seed(seed) for seed in (0, 1 + rank))
    kept: list[tuple[Tensor, Tensor]] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        shard: Tensor | None = getattr(parameter, "ds_tensor", None)
        is_cut = shard is not None and not parameter.numel()  # not one that is kept gathered
        held = (shard if shard is not None and is_cut else parameter).data
        draw = of_shard if is_cut else of_whole
        noise = torch.randn(held.shape, generator=draw) * _STIRRED
        kept.append((held, held.clone()))
        held.add_(noise.to(held))
    try:
        yield
    finally:
        for held, before in kept:
            held.copy_(before)


def _targets(base: "PreTrainedModel", tuning: TuningSection) -> tuple[list[str] | None, Any]:
    """Names for PEFT, or None where it finds the layers itself; and what auto chose."""
    if tuning.target_modules != "auto":
        paths = [path for path, _ in base.named_modules()]
        for name in tuning.target_modules:
            if not any(is_named(path, name) for path in paths):
                layers.check_named(name, sorted(layers.linear_layers(base)))
        return list(tuning.target_modules), None
    if tuning.method in _OWN_LAYERS:
        return None, None
    if tuning.method in _NORMS:
        modules = backbone_of(base).named_modules()
        norms = {path.rpartition(".")[2] for path, one in modules if "Norm" in type(one).__name__}
        return sorted(norms), None
    targets = choose_targets(base, tuning)
    return targets.modules, targets
