"""A DeepSpeed preset of ds_configs/: ZeRO, offload and communication keys only."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PRESET_FOLDER = ROOT / "ds_configs"
PRESET_KEYS = frozenset(
    {"zero_optimization", "zero_force_ds_cpu_optimizer", "communication_data_type"}
)
_LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's default


@dataclass(frozen=True)
class Preset:
    """A preset by name, with the content of its file."""

    name: str
    settings: Mapping[str, Any]

    @property
    def zero(self) -> Mapping[str, Any]:
        """Its ZeRO settings."""
        settings: Mapping[str, Any] = self.settings["zero_optimization"]
        return settings

    @property
    def stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return int(self.zero["stage"])

    @property
    def is_offloaded(self) -> bool:
        """Whether masters and moments are kept in host memory."""
        return "offload_optimizer" in self.zero

    @property
    def communication_dtype(self) -> str | None:
        """Dtype of gradients in communication; None: as in training."""
        return self.settings.get("communication_data_type")

    @property
    def live_parameters(self) -> int:
        """Parameters that ZeRO 3 keeps gathered."""
        return int(self.zero.get("stage3_max_live_parameters", _LIVE_PARAMETERS))


def load_preset(name: str) -> Preset:
    """Read ds_configs/<name>.json.

    Raises:
        ConfigError: Unknown name, a key that the run owns, or a stage that does not exist.
    """
    path = PRESET_FOLDER / f"{name}.json"
    names = sorted(file.stem for file in PRESET_FOLDER.glob("*.json"))
    if name not in names:  # a path would read a file of somebody else
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        machines = sorted({name.partition("_zero")[0] for name in names})
        raise ConfigError(
            f"engine.preset: no preset {name!r}{hint} Machines: {', '.join(machines)}; each with"
            " _zero0 to _zero3, GPUs also with _offload behind 1 to 3 (ds_configs/README.md)"
        )
    try:
        preset = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"ds_configs/{name}.json is not JSON: {error}") from error
    if not isinstance(preset, dict) or not isinstance(preset.get("zero_optimization"), dict):
        raise ConfigError(f"ds_configs/{name}.json must hold an object zero_optimization")
    foreign = sorted(preset.keys() - PRESET_KEYS)
    if foreign:
        raise ConfigError(
            f"ds_configs/{name}.json sets {foreign}, which the run owns; remove it there and use"
            " the optim and engine sections of the recipe"
        )
    stage = preset["zero_optimization"].get("stage")
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise ConfigError(
            f"ds_configs/{name}.json: zero_optimization.stage must be 0, 1, 2 or 3, found {stage!r}"
        )
    return Preset(name, preset)
