"""What LoRA adapts: linear layers and, where the recipe names them, parameters of stacked experts.

auto takes what an adapter can train (tuning/probe.py), is at least as wide as the rank and PEFT
adapts under the name it has: PEFT refuses some names for some model types, and takes others for the
experts' parameters, which had them in older releases of transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from trainer.architectures.adapters import is_named
from trainer.architectures.classes import head_modules
from trainer.architectures.derived import (
    backbone_of,
    features,
    is_linear,
    numbers_hidden,
    stacked_parameters,
    within_block,
)
from trainer.config.methods import HEAD
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.tuning.layers import check_named, linear_layers
from trainer.tuning.probe import idle_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_SHOWN = 6  # names for each reason


@dataclass(frozen=True)
class Targets:
    """What is adapted, by the names that PEFT gets.

    Attributes:
        modules: Ends of paths of linear layers.
        parameters: Ends of paths of 3-D parameters.
        left_out: Path of a linear layer of the backbone that auto did not take -> why.
    """

    modules: list[str]
    parameters: list[str] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def left_out_line(self) -> str:
        """The layers by reason, those of all blocks as one."""
        names: dict[str, list[str]] = {}
        for path, why in self.left_out.items():
            names.setdefault(why, []).append(numbers_hidden(path))
        return "; ".join(f"{_shown(paths)} ({why})" for why, paths in names.items())


def choose_targets(base: "PreTrainedModel", tuning: TuningSection) -> Targets:
    """The targets of a base without adapters; only an explicit name adapts a classifier's head.

    Raises:
        ModelError: auto finds no layer; a name matches none, or one that is narrower than the rank
            or that PEFT does not adapt.
    """
    if tuning.target_modules == "auto":
        return _auto(base, tuning)
    paths = sorted({*linear_layers(base), *([HEAD] if HEAD in head_modules(base) else [])})
    stacked = stacked_parameters(base)
    modules, parameters = [], []
    for name in tuning.target_modules:
        is_layer = any(is_named(path, name) for path in paths)
        if not is_layer and any(is_named(path, name) for path in stacked):
            _check_stacked(base, name, tuning)
            parameters.append(name)
        else:
            check_named(name, paths)
            _check_layers(base, name, tuning)
            modules.append(name)
    return Targets(modules, parameters)


def stacked_line(base: nn.Module, num_parameters: int, tuning: TuningSection) -> str | None:
    """Says which weights no linear layer holds, their share, and whether they are adapted."""
    own = {n: p for n, p in stacked_parameters(base).items() if not p.requires_grad}
    stacked = {name.replace(".base_layer", ""): p for name, p in own.items()}
    if not stacked or tuning.method == "full":
        return None
    share = sum(parameter.numel() for parameter in stacked.values()) / num_parameters
    names = sorted({within_block(path) for path in stacked})
    adapted = [name for name in names if any(is_named(name, one) for one in tuning.target_modules)]
    others = [name for name in names if name not in adapted]
    line = f"{', '.join(names)}: one parameter for all experts of a block, {share:.1%} of the model"
    line += f"; adapted: {', '.join(adapted)}" if adapted else ""
    if others:
        line += f"; not adapted: {', '.join(others)}; only the modules above are"
    return line + ("; experts are not quantised" if tuning.base_quant_type else "")


def peft_refusal(base: "PreTrainedModel", path: str) -> str | None:
    """Why PEFT does not adapt a layer of this name in this model; it decides by the last part."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    name, kind = path.rpartition(".")[2], base.config.model_type
    settings = LoraConfig(target_modules=[name])
    try:
        _check_lora_target_modules_mamba(settings, base, name)
    except ValueError:
        return f"PEFT does not adapt {name} in {kind}"
    try:
        convert_peft_config_for_transformers(settings, base, None)
        is_kept = set(settings.target_modules or ()) == {name}
    except ValueError:  # it wants the others of the experts' names, too
        is_kept = False
    return None if is_kept else f"PEFT takes {name} in {kind} for the experts' parameters"


def _auto(base: "PreTrainedModel", tuning: TuningSection) -> Targets:
    backbone, heads = backbone_of(base), tuple(head_modules(base))
    prefix = next(name for name, module in base.named_modules() if module is backbone)
    idle = idle_layers(backbone, base.name_or_path)
    chosen, left_out = set(), {}
    for name, layer in backbone.named_modules():
        path = f"{prefix}.{name}" if prefix else name
        if not is_linear(layer) or f"{path}.".startswith(tuple(f"{head}." for head in heads)):
            continue
        why = idle.get(name) or _narrow(layer, tuning.lora_r) or _whole(name, tuning)
        if why := why or peft_refusal(base, name):
            left_out[name] = why
        else:
            chosen.add(path)
    targets = Targets(_names(base, chosen, tuning), left_out=left_out)
    if not chosen:
        raise ModelError(
            f"tuning.target_modules auto: {base.config.model_type} has no linear layer to adapt:"
            f" {targets.left_out_line or 'none at all'}; lower tuning.lora_r, name other layers, or"
            " take tuning.method=full"
        )
    return targets


def _names(base: nn.Module, chosen: set[str], tuning: TuningSection) -> list[str]:
    """The shortest kind of names that match these layers and no other module."""
    paths = [path for path, _ in base.named_modules() if not _whole(path, tuning)]
    for shorten in (lambda path: path.rpartition(".")[2], within_block):
        names = {shorten(path) for path in chosen}
        if {path for path in paths if any(is_named(path, name) for name in names)} == chosen:
            return sorted(names)
    return sorted(chosen)


def _check_layers(base: "PreTrainedModel", name: str, tuning: TuningSection) -> None:
    """Refuse a name of linear layers that PEFT would not adapt as the recipe says."""
    for path, module in base.named_modules():
        if not is_named(path, name) or _whole(path, tuning):
            continue
        if not is_linear(module):
            raise ModelError(
                f"tuning.target_modules: {name!r} also matches {path}, a {type(module).__name__};"
                " only linear layers are adapted: give more of the path"
            )
        if path != HEAD and (why := _narrow(module, tuning.lora_r)):
            raise ModelError(f"tuning.target_modules: {path!r} is {why}; lower tuning.lora_r")
    if why := peft_refusal(base, name):
        raise ModelError(f"tuning.target_modules: {name!r}: {why}; leave it out")


def _check_stacked(base: nn.Module, name: str, tuning: TuningSection) -> None:
    """Refuse what PEFT's wrapper of a parameter does not compute."""
    what = f"tuning.target_modules: {name!r} is one parameter for all experts"
    if tuning.lora_dropout:
        raise ModelError(f"{what}, whose adapter knows no dropout; set tuning.lora_dropout=0")
    if tuning.variant == "dora":
        raise ModelError(f"{what}, which dora does not support; take tuning.variant=plain")
    stacked = stacked_parameters(base)
    for path, parameter in base.named_parameters():
        if is_named(path, name) and path not in stacked:
            raise ModelError(f"{what}, and also matches {path}; give more of the path")
        if is_named(path, name) and tuning.lora_r > min(parameter.shape[1:]):
            side = min(parameter.shape[1:])
            raise ModelError(f"{what}, {side} wide, below tuning.lora_r {tuning.lora_r}; lower it")


def _narrow(layer: nn.Module, rank: int) -> str | None:
    side = min(features(layer))
    return f"{side} wide, below tuning.lora_r {rank}" if side < rank else None


def _whole(path: str, tuning: TuningSection) -> str | None:
    is_saved = any(part in tuning.modules_to_save for part in path.split("."))
    return "trained whole" if is_saved else None


def _shown(paths: list[str]) -> str:
    names = list(dict.fromkeys(paths))
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more
