"""The cells of a grid: the recipe of each, checked before the first one starts."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from trainer.config.recipe import load_run_config
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.planning.plan import read_shape

_OWNED = ("tuning.method", "model.path", "model.config", "run.seed", "run.output_dir")


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        method, model, seed: Its place; `model` is a name.
        overrides: Arguments of launcher/train.py after the recipe.
    """

    method: str
    model: str
    seed: int
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        """METHOD/MODEL/seed-N, also its run folder below the recipe's run.output_dir."""
        return f"{self.method}/{self.model}/seed-{self.seed}"


def expand(
    recipe: Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    models: Sequence[str] = (),
    seeds: Sequence[int] = (),
    settings: Sequence[str] = (),
) -> tuple[Path, list[Cell]]:
    """The folder of the grid and its cells, by seed, model, method: the first seed comes first.

    Args:
        models: FOLDER or NAME=FOLDER; none: the recipe's own model.
        seeds: Values of run.seed; none: the recipe's own seed.
        settings: METHOD:section.key=value, for the cells of one method.

    Raises:
        ConfigError: Cells that could not run; the message lists every fault.
        ModelError: The sizes of a model are not known.
    """
    _check_lists(methods, models, seeds)
    own, folders = _settings(overrides, methods, settings), _model_overrides(models)
    roots: list[Path] = []
    cells: list[Cell] = []
    faults: dict[str, str] = {}
    for seed, model, method in product(seeds or (None,), folders, methods):
        keys = (*overrides, *folders[model], f"tuning.method={method}", *own[method])
        keys += () if seed is None else (f"run.seed={seed}",)
        try:
            config = load_run_config(recipe, keys)
        except ConfigError as error:
            faults.setdefault(str(error), f"{method} {model}".strip())
            continue
        roots.append(config.output_dir)
        cells.append(_cell(config, model or _checked_name(config.model_folder.name), keys))
    if faults:
        raise ConfigError("\n".join(f"{name}: {fault}" for fault, name in faults.items()))
    for config in {cell.model: cell.config for cell in cells}.values():
        read_shape(config)
    return roots[0], cells


def _cell(config: RunConfig, model: str, keys: tuple[str, ...]) -> Cell:
    """A cell in its own folder below the recipe's run.output_dir."""
    method, seed = config.tuning.method, config.run.seed
    folder = str(config.output_dir / method / model / f"seed-{seed}")
    keys += (f"run.output_dir={json.dumps(folder)}",)
    return Cell(method, model, seed, keys, config.changed("run", output_dir=folder))


def _check_lists(methods: Sequence[str], models: Sequence[str], seeds: Sequence[int]) -> None:
    for option, texts in (("--methods", methods), ("--models", models)):
        for text in texts:  # an option takes every argument after it, also overrides
            key, equals, _ = text.partition("=")
            section, dot, _ = key.partition(".")
            if equals and dot and section in RunConfig.model_fields:
                raise ConfigError(f"{option} {text}: keys for all cells follow RECIPE directly")
    for option, values in (("--methods", methods), ("--seeds", seeds)):
        if len(set(values)) < len(values):
            raise ConfigError(f"{option} {' '.join(map(str, values))}: name each only once")


def _settings(
    overrides: Sequence[str], methods: Sequence[str], settings: Sequence[str]
) -> dict[str, list[str]]:
    """The overrides of each method."""
    own: dict[str, list[str]] = {method: [] for method in methods}
    for text in settings:
        method, colon, override = text.partition(":")
        if not colon or method not in own:
            raise ConfigError(
                f"--set {text}: write METHOD:section.key=value, METHOD one of {list(own)}"
            )
        own[method].append(override)
    for override in [*overrides, *chain.from_iterable(own.values())]:
        key = override.partition("=")[0]
        if key in _OWNED[:1] or (key in _OWNED and override not in overrides):
            raise ConfigError(f"{override}: a sweep sets {key} of every cell; remove it")
    return own


def _model_overrides(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The overrides of each model by its name; a folder without weights gives random ones."""
    models: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text).resolve()
        name = _checked_name(name if equals else path.name)
        if name in models:
            raise ConfigError(f"--models: two are named {name}; write NAME=FOLDER")
        has_weights = any(path.glob("*.safetensors"))
        key, other = ("path", "config") if has_weights else ("config", "path")
        models[name] = (f"model.{key}={json.dumps(str(path))}", f"model.{other}=null")
    return models or {"": ()}


def _checked_name(name: str) -> str:
    """A name that is also safe as the name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} cannot name a model's folder; write --models NAME=FOLDER")
    return name
