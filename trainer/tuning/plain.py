"""Full fine-tuning, and the part of PEFT's interface that a run uses, without PEFT."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from trainer.config.methods import HEAD, SCORE_FILE
from trainer.config.sections import TuningSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LOADER = Path(__file__).with_name("load_classifier.py")  # a copy of it lies beside our own heads


class PlainModel(nn.Module):
    """A base that trains its own parameters, with the methods of PeftModel that a run uses."""

    def __init__(self, base: "PreTrainedModel") -> None:
        super().__init__()
        self.base_model = base

    def get_base_model(self) -> "PreTrainedModel":
        """The model of transformers."""
        return self.base_model

    def merge_adapter(self) -> None:
        """Does nothing: there are no adapters."""

    def unload(self) -> "PreTrainedModel":
        """The model of transformers."""
        return self.base_model

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write a plain transformers folder with the trained weights, named as in this module."""
        own = {name.removeprefix("base_model."): value for name, value in state.items()}
        save_base(self.base_model, folder, own)


def train_all(base: "PreTrainedModel", tuning: TuningSection) -> PlainModel:
    """Train every parameter of the base."""
    base.requires_grad_(True)
    return PlainModel(base)


def is_backbone(base: nn.Module) -> bool:
    """Whether a classifier is a backbone of transformers with a head of ours."""
    return getattr(base, "base_model", None) is base and hasattr(base, HEAD)


def save_base(
    base: "PreTrainedModel", folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a plain transformers folder; our own head gets a file beside it."""
    from safetensors.torch import save_file

    weights = base.state_dict()
    if state is not None:  # of a live model that may be sharded only the buffers count
        parameters = dict(base.named_parameters(remove_duplicate=False))
        weights = {n: v for n, v in weights.items() if n not in parameters} | dict(state)
    if is_backbone(base):
        head = {"weight": weights.pop(f"{HEAD}.weight").contiguous()}
        save_file(head, folder / SCORE_FILE, metadata={"format": "pt"})
    base.save_pretrained(str(folder), state_dict=weights)
