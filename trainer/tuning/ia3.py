"""IA3 (Liu et al. 2022) through PEFT: a trained scale for every feature of a few layers."""

from typing import TYPE_CHECKING

from trainer.architectures.adapters import is_feed_forward
from trainer.config.sections import TuningSection
from trainer.tuning.layers import (
    check_modules,
    choose_modules,
    is_conv1d,
    layers_named,
    task_type,
    with_peft,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_ia3(base: "PreTrainedModel", tuning: TuningSection) -> "PeftModel":
    """Freeze the base, scale attention's outputs and the inputs of the feed-forward's last layer.

    Args:
        base: A sequence-classification or causal language model.
        tuning: The names of the layers and of modules trained whole.

    Raises:
        ModelError: A name matches no layer.
    """
    from peft import IA3Config

    check_modules(base, tuning.modules_to_save)
    layers = layers_named(base, choose_modules(base, tuning))
    settings = IA3Config(
        task_type=task_type(base),
        target_modules=list(layers),
        feedforward_modules=[path for path in layers if is_feed_forward(path)],
        modules_to_save=list(tuning.modules_to_save) or None,
        fan_in_fan_out=any(is_conv1d(layer) for layer in layers.values()),
    )
    return with_peft(base, settings)
