"""Bottleneck adapters: Houlsby et al. 2019, Pfeiffer et al. 2021, and He et al. 2022 (parallel).

    f(x) = up(tanh(down(x)))     down: wide -> size, up: size -> wide, no biases

    adapter_h, adapter_p   y = layer(x + f(x)) before a layer, y = z + f(z) with z = layer(x) behind
    parallel               y = layer(x) + f(x)

Files of a saved adapter, complete but for the base:

    adapter_config.json         format, base, method, size, adapters' places, whole modules
    adapter_model.safetensors   NAME.adapter_down.weight (size, wide), NAME.adapter_up.weight
                                (wide, size), the head and other modules trained whole; NAME is the
                                layer's name in the model of transformers

    D features of the wide side
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.architectures.adapters import Place, place_of
from trainer.architectures.classes import head_modules
from trainer.architectures.derived import features
from trainer.config.methods import adapter_size
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.tuning.layers import adapted, choose_modules, layers_named, trained_whole
from trainer.tuning.plain import PlainModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = "focaltune-bottleneck-1"
_LLM_ADAPTERS_STD = 0.02  # Hu et al. 2023 draw both matrices, as BERT does


@dataclass(frozen=True)
class BottleneckSettings:
    """The content of adapter_config.json."""

    format: str
    base_model_name_or_path: str
    method: str
    size: int
    activation: str
    places: dict[str, Place]  # end of a layer's name -> where its adapter is
    modules_to_save: list[str]


class BottleneckLinear(nn.Module):
    """A frozen linear layer with an adapter before it, behind it or beside it.

    Args:
        dropout: On the adapter's input.
        is_identity: Start with up at zero; else start as LLM-Adapters does.
    """

    def __init__(
        self, base_layer: nn.Module, place: Place, size: int, dropout: float, is_identity: bool
    ) -> None:
        super().__init__()
        inputs, outputs = features(base_layer)
        device = next(base_layer.parameters()).device
        self.base_layer = base_layer
        self.place = place
        self.dropout = nn.Dropout(dropout)
        self.adapter_down = nn.Linear(outputs if place == "output" else inputs, size, bias=False)
        self.adapter_up = nn.Linear(size, inputs if place == "input" else outputs, bias=False)
        if is_identity:
            nn.init.zeros_(self.adapter_up.weight)
        else:
            nn.init.normal_(self.adapter_down.weight, std=_LLM_ADAPTERS_STD)
            nn.init.normal_(self.adapter_up.weight, std=_LLM_ADAPTERS_STD)
        self.adapter_down.to(device)
        self.adapter_up.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the layer's own dtype."""
        if self.place == "input":
            result: Tensor = self.base_layer(x + self._adapter(x))
            return result
        z: Tensor = self.base_layer(x)
        return z + self._adapter(z if self.place == "output" else x)

    def _adapter(self, x_D: Tensor) -> Tensor:
        trained = self.adapter_down.weight.dtype  # fp32 over a 16-bit base where the run is
        inner = torch.tanh(self.adapter_down(self.dropout(x_D.to(trained))))
        added: Tensor = self.adapter_up(inner).to(x_D.dtype)
        return added


class BottleneckModel(PlainModel):
    """A base with bottleneck adapters in its layers, and the content of adapter_config.json."""

    def __init__(self, base: "PreTrainedModel", settings: BottleneckSettings) -> None:
        super().__init__(base)
        self.settings = settings

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write adapter_config.json and adapter_model.safetensors, see above."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self.settings), indent=2) + "\n"
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        own = {n.removeprefix("base_model."): v.contiguous() for n, v in state.items()}
        save_file(own, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def add_bottlenecks(base: "PreTrainedModel", tuning: TuningSection) -> BottleneckModel:
    """Freeze the base, put adapters into its layers, train them and a classifier's head.

    Raises:
        ModelError: A name matches no layer, or no side of a layer is as wide as the model.
    """
    layers = layers_named(base, choose_modules(base, tuning))
    heads = head_modules(base)
    whole = [name for name in trained_whole(base, tuning) or [] if name not in heads] + heads
    places = {path: _place(base, path, layer, tuning.method) for path, layer in layers.items()}
    base.requires_grad_(False)
    size, is_identity = adapter_size(tuning), tuning.variant != "llm_adapters"
    for path, place in places.items():
        for name, layer in adapted(base, [path]).items():
            parent, _, last = name.rpartition(".")
            adapter = BottleneckLinear(layer, place, size, tuning.lora_dropout, is_identity)
            setattr(base.get_submodule(parent), last, adapter)
    for name, module in base.named_modules():
        if name in heads or name.rpartition(".")[2] in whole:
            module.requires_grad_(True)
    settings = BottleneckSettings(
        FORMAT, base.name_or_path, tuning.method, size, "tanh", places, whole
    )
    return BottleneckModel(base, settings)


def _place(base: "PreTrainedModel", path: str, layer: nn.Module, method: str) -> Place:
    embeddings: Any = base.get_input_embeddings()
    try:
        return place_of(method, *features(layer), embeddings.weight.shape[1])
    except ValueError as error:
        raise ModelError(f"tuning.target_modules: {path!r} takes no {method}: {error}") from error
