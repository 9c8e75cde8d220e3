"""Keys that older versions of a recipe had, and where they are now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RENAMED = {
    "loss.detach_modulator": "replication.detach_modulator",
    "eval.compat_population": "replication.compat_population",
    "log.tensorboard": "list it in log.trackers, [tensorboard] by default and [] for none",
}
"""Older key -> the key that replaced it, or a sentence on what to do without it."""


def older_key_message(key: str) -> str:
    """What to do about a key of an older version; empty for any other key."""
    if key not in RENAMED:
        return ""
    new = RENAMED[key]
    return f"{key} was renamed: write {new}" if " " not in new else f"{key} is gone: {new}"


def is_saved(recipe: Path) -> bool:
    """Whether a run wrote this recipe, perhaps a run of an older version."""
    return recipe.name == "config.yaml" and (recipe.parent / "checkpoints").is_dir()


def with_current_keys(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved recipe with every older key under its new name; a key that is gone is left out."""
    recipe = {name: dict(v) if isinstance(v, Mapping) else v for name, v in saved.items()}
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        if key not in (recipe.get(section) or {}):
            continue
        value = recipe[section].pop(key)
        if " " not in new:
            section, _, key = new.partition(".")
            recipe.setdefault(section, {})[key] = value
    return recipe
