"""The choices made for a run, and the model they lead to."""

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config import RunConfig
from trainer.engine import choose_preset
from trainer.losses import choose_backend
from trainer.models.heads import PackedClassifier
from trainer.models.load import choose_attention, choose_precision, load_base
from trainer.recipe import load_preset
from trainer.run_folder import BASE
from trainer.tuning import METHODS


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


def choose(config: RunConfig, device: torch.device) -> Choices:
    """Resolve every `auto` of a recipe on this machine.

    Raises:
        ConfigError: A combination the stack gets wrong, or a loss back end that is not there.
        ModelError: An attention back end that is not there.
    """
    preset, preset_reason = choose_preset(config, device)
    stage = int(load_preset(preset)["zero_optimization"]["stage"])
    precision, precision_reason = choose_precision(config, stage, device)
    attention, attention_reason = choose_attention(config.model.attention, precision, device)
    loss_backend, loss_reason = choose_backend(config.loss.backend, config.task.name, device)
    return Choices(
        preset, preset_reason, stage, precision, precision_reason, attention, attention_reason,
        loss_backend, loss_reason,
    )  # fmt: skip


def build_model(
    config: RunConfig, choices: Choices, base_folder: Path | None = None
) -> PackedClassifier:
    """Base, adapters and head on the CPU, the trained parameters in the precision of the run.

    Args:
        config: The run.
        choices: Resolved on this machine.
        base_folder: Where a base of random weights is kept: the adapter needs it.

    Raises:
        ModelError: The base does not load or the adapters do not fit it.
    """
    base = load_base(config, choices.attention, choices.precision)
    if base_folder is not None and not base_folder.exists():
        building = base_folder.with_name(f".{base_folder.name}-{uuid.uuid4().hex}")
        base.save_pretrained(str(building))
        os.rename(building, base_folder)
    if config.model.config:
        base.name_or_path = str(config.output_dir / BASE)  # what the adapter's config names
    model = PackedClassifier(METHODS[config.tuning.method](base, config.tuning), choices.attention)
    if choices.precision == "fp32":  # also over a 16-bit frozen base
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return model
