"""The choices made for a run, and the model they lead to."""

import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainer.config.capabilities import MACHINE_LIMITS, STACK_LIMITS, refusals
from trainer.config.recipe import load_preset, recipe_setup
from trainer.config.sections import RunConfig
from trainer.engine.engine import this_machine
from trainer.errors import ConfigError, MachineError
from trainer.losses.loss import choose_backend
from trainer.models.files import base_digest
from trainer.models.heads import PackedClassifier, PackedLanguageModel, PackedModel
from trainer.models.load import (
    choose_attention,
    choose_precision,
    load_base,
    load_quantized_base,
)
from trainer.planning.job import choose_preset
from trainer.planning.plan import read_shape
from trainer.run_folder.folder import BASE
from trainer.tuning import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Choices:
    """What `auto` became, each with its reason for the banner."""

    preset: str
    preset_reason: str
    zero_stage: int
    precision: str
    precision_reason: str
    attention: str
    attention_reason: str
    loss_backend: str
    loss_reason: str


def choose(config: RunConfig, device: torch.device, world_size: int = 1) -> Choices:
    """Resolve every `auto` of a recipe on this machine.

    Args:
        config: The run, or a finished one that is only read: then one rank is enough.
        device: Of this rank.
        world_size: Ranks.

    Raises:
        ConfigError: A combination the stack gets wrong, or a loss back end that is not there.
        MachineError: One that this machine cannot run.
        ModelError: An attention back end that is not there.
    """
    machine = this_machine(device, world_size)
    preset, preset_reason = choose_preset(config, read_shape(config), machine)
    stage = int(load_preset(preset)["zero_optimization"]["stage"])
    precision, precision_reason = choose_precision(config, stage, device)
    _refuse(config, preset, precision, device)
    attention, attention_reason = choose_attention(config.model.attention, precision, device)
    loss_backend, loss_reason = choose_backend(config.loss.backend, config.task.name, device)
    return Choices(
        preset, preset_reason, stage, precision, precision_reason, attention, attention_reason,
        loss_backend, loss_reason,
    )  # fmt: skip


def write_random_base(config: RunConfig, choices: Choices) -> None:
    """Keep a base of random weights in the run folder: the adapter needs it, and QLoRA reads it."""
    folder = config.output_dir / BASE
    if not config.model.config or folder.exists():
        return
    building = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    load_base(config, choices.attention, choices.precision).save_pretrained(str(building))
    os.rename(building, folder)


def build_model(config: RunConfig, choices: Choices) -> PackedModel:
    """Base, adapters and head, the trained parameters in the precision of the run.

    On the CPU, but for a quantised base on a GPU.

    Args:
        config: The run; a base of random weights is already in its folder where it is quantised.
        choices: Resolved on this machine.

    Raises:
        ModelError: The base does not load or the adapters do not fit it.
    """
    base = _load(config, choices)
    if config.model.config:
        base.name_or_path = str(config.output_dir / BASE)  # what the adapter's config names
    tuned = METHODS[config.tuning.method](base, config.tuning)
    model: PackedModel
    if config.is_language:
        model = PackedLanguageModel(tuned, choices.attention, config.loss, choices.loss_backend)
    else:
        model = PackedClassifier(tuned, choices.attention)
    if choices.precision == "fp32":  # also over a 16-bit frozen base
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return model


def _load(config: RunConfig, choices: Choices) -> "PreTrainedModel":
    if config.tuning.base_quant_type is None:
        return load_base(config, choices.attention, choices.precision)
    source = Path(config.model.path or config.output_dir / BASE)
    return load_quantized_base(
        config, choices.attention, choices.precision, source, base_digest(config)
    )


def _refuse(config: RunConfig, preset: str, precision: str, device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    setup = replace(
        recipe_setup(config, preset, precision), device=device.type, compute_capability=capability
    )
    if faults := refusals(setup, STACK_LIMITS):
        raise ConfigError("\n".join(faults))
    if faults := refusals(setup, MACHINE_LIMITS):
        raise MachineError("\n".join(faults))
