"""tuning.init_from: an adapter that was trained before is where this run starts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel

_CONFIG, _WEIGHTS, _FACTS = "adapter_config.json", "adapter_model.safetensors", "focaltune.json"
_MUST_MATCH = ("r", "lora_alpha", "target_modules", "modules_to_save")


def adapter_folder(path: Path, base_sha256: str) -> Path:
    """The adapter that tuning.init_from names: a folder in PEFT's layout, or a run that holds one.

    Raises:
        ModelError: Nothing there, or it was trained on another base.
    """
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    missing = [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"tuning.init_from: {folder} holds no {' and no '.join(missing)}; give a finished run"
            " or an adapter in PEFT's layout"
        )
    facts = _json(folder / _FACTS) if (folder / _FACTS).is_file() else {}
    if facts.get("base_sha256", base_sha256) != base_sha256:
        raise ModelError(
            f"tuning.init_from: {folder} was trained on another base; give model.path the base it"
            " was trained on"
        )
    return folder


def take_adapter(model: "PeftModel", folder: Path) -> None:
    """Overwrite the fresh adapter and head with those of a folder.

    Raises:
        ModelError: Another rank, scale or other modules, or weights that are missing.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    saved, fresh = _json(folder / _CONFIG), model.peft_config["default"].to_dict()
    for key in _MUST_MATCH:
        before, now = _comparable(saved.get(key)), _comparable(fresh[key])
        if before != now:
            raise ModelError(
                f"tuning.init_from: {folder} has {key} {before}, this recipe {now}; an adapter is"
                " continued with its own"
            )
    weights = load_file(folder / _WEIGHTS)
    result: Any = set_peft_model_state_dict(model, weights)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    absent = sorted(trained & set(result.missing_keys))
    if absent or result.unexpected_keys:
        odd = [*absent, *result.unexpected_keys]
        raise ModelError(f"tuning.init_from: {folder}: {len(odd)} weights differ, first {odd[0]}")


def _json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}; copy the adapter again") from error
    return values


def _comparable(value: Any) -> Any:
    """Module names come as lists and sets, and none at all as null."""
    return sorted(value) if isinstance(value, list | set | tuple) else value or None
