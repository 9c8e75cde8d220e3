"""The cells of a grid: the recipe of each, checked before the first one starts."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path

from trainer.config.recipe import load_run_config
from trainer.config.sections import RunConfig
from trainer.config.strict_yaml import read_yaml
from trainer.errors import ConfigError
from trainer.planning.plan import read_shape
from trainer.sweep.budget import keys_within

_OWNED = ("tuning.method", "model.path", "model.config", "run.seed", "run.output_dir")
_LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        method, model, seed: Its place; `model` is a name, `method` is followed by the values of
            the swept keys, e.g. "lora optim.lr=0.001".
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
        return f"{_folder_name(self.method)}/{self.model}/seed-{self.seed}"


def expand(
    recipe: Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    models: Sequence[str] = (),
    seeds: Sequence[int] = (),
    settings: Sequence[str] = (),
    grid: Sequence[str] = (),
    budget: str | None = None,
) -> tuple[Path, list[Cell]]:
    """The folder of the grid and its cells, by seed, model, method: the first seed comes first.

    Args:
        methods: Values of tuning.method; none: the recipe's own.
        models: FOLDER or NAME=FOLDER; none: the recipe's own model.
        seeds: Values of run.seed; none: the recipe's own seed.
        settings: METHOD:section.key=value, for the cells of one method.
        grid: section.key=VALUE,VALUE, each value with each of the others.
        budget: trained_parameters=N or N%, for which every method gets its largest size.

    Raises:
        ConfigError: Cells that could not run; the message lists every fault.
        ModelError: The sizes of a model are not known.
    """
    _check_lists(methods, models, seeds)
    own, folders = _settings(overrides, methods, settings), _model_overrides(models)
    points = _points(grid, [*overrides, *chain.from_iterable(own.values())])
    roots: list[Path] = []
    cells: list[Cell] = []
    faults: dict[str, str] = {}
    sizes: dict[tuple[str | None, ...], tuple[str, ...]] = {}
    every = product(seeds or (None,), folders, methods or (None,), points)
    for seed, model, method, point in every:
        keys = (*overrides, *folders[model], *point.values())
        keys += () if method is None else (f"tuning.method={method}", *own[method])
        keys += () if seed is None else (f"run.seed={seed}",)
        try:
            config = load_run_config(recipe, keys)
            if budget is not None:  # the same for every seed
                if (place := (method, *point, model)) not in sizes:
                    sizes[place] = keys_within(budget, config, keys, " ".join(filter(None, place)))
                keys += sizes[place]
                config = load_run_config(recipe, keys)
        except ConfigError as error:
            place = (method, *point, model)
            faults.setdefault(str(error), " ".join(filter(None, place)) or str(recipe))
            continue
        roots.append(config.output_dir)
        name = model or _checked_name(config.model_folder.name)
        cells.append(_cell(config, " ".join([config.tuning.method, *point]), name, keys))
    if faults:
        raise ConfigError("\n".join(f"{name}: {fault}" for fault, name in faults.items()))
    for config in {cell.model: cell.config for cell in cells}.values():
        read_shape(config)
    return roots[0], cells


def _cell(config: RunConfig, method: str, model: str, keys: tuple[str, ...]) -> Cell:
    """A cell in its own folder below the recipe's run.output_dir."""
    cell = Cell(method, model, config.run.seed, keys, config)
    folder = str(config.output_dir / cell.name)
    keys += (f"run.output_dir={json.dumps(folder)}",)
    return replace(cell, overrides=keys, config=config.changed("run", output_dir=folder))


def _points(grid: Sequence[str], given: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of values: what is shown of each value -> the override.

    Raises:
        ConfigError: A key or a value occurs twice, or a key has an option of its own.
    """
    axes: dict[str, dict[str, str]] = {}
    for text in grid:
        key, equals, raw = text.partition("=")
        values = read_yaml(f"[{raw}]", f"--grid {key}") if equals and raw.strip() else []
        if not values:
            raise ConfigError(f"--grid {text}: write section.key=VALUE,VALUE")
        if key in _OWNED:
            raise ConfigError(f"--grid {key}: take --methods, --models, --seeds or run.output_dir")
        if key in axes or key in {one.partition("=")[0] for one in given}:
            raise ConfigError(f"--grid {key}: the key is given twice; name it once")
        shown = [f"{key}={v if isinstance(v, str) else json.dumps(v)}" for v in values]
        if len(set(shown)) < len(shown):
            raise ConfigError(f"--grid {text}: name each value only once")
        overrides = (f"{key}={json.dumps(value)}" for value in values)
        axes[key] = dict(zip(shown, overrides, strict=True))
    return [dict(point) for point in product(*(axis.items() for axis in axes.values()))]


def _folder_name(method: str) -> str:
    """A method with its values as the name of a folder; what is changed gets a digest."""
    name = re.sub(r"[^A-Za-z0-9=._+-]+", "_", method)
    if name == method.replace(" ", "_") and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(method.encode()).hexdigest()[:8]}"


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
