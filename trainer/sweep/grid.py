"""The cells of a grid: what launcher/train.py is given for each, checked before any starts."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from trainer.config.recipe import load_run_config
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.planning.plan import read_shape

_OWNED = ("tuning.method", "model.path", "model.config", "run.seed", "run.output_dir")


@dataclass(frozen=True)
class Request:
    """The options of the command line.

    Attributes:
        recipe: Of every cell.
        overrides: section.key=value, of every cell.
        methods: Of tuning.method.
        models: FOLDER or NAME=FOLDER; none: the recipe's own.
        seeds: Of run.seed; none: the recipe's own.
        settings: METHOD:section.key=value, of the cells of a method.
    """

    recipe: Path
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        method, model, seed: Its place; `model` is a name.
        overrides: Arguments of launcher/train.py after the recipe.
        config: The recipe with these overrides.
    """

    method: str
    model: str
    seed: int
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        """METHOD/MODEL/seed-N, also the run folder's place below run.output_dir."""
        return f"{self.method}/{self.model}/seed-{self.seed}"


def expand(request: Request) -> tuple[Path, list[Cell]]:
    """The folder of the grid and its cells, by seed, model, method: a whole comparison comes early.

    Raises:
        ConfigError: A cell that could not run as written, with every fault found.
        ModelError: A model whose sizes are not known.
    """
    own, models = _settings(request), _model_overrides(request)
    roots: list[Path] = []
    cells: list[Cell] = []
    faults: dict[str, str] = {}
    for seed, model, method in product(request.seeds or (None,), models, request.methods):
        given = (*request.overrides, *models[model], f"tuning.method={method}", *own[method])
        given += () if seed is None else (f"run.seed={seed}",)
        try:
            config = load_run_config(request.recipe, given)
        except ConfigError as error:
            faults.setdefault(str(error), f"{method} {model}".strip())
            continue
        roots.append(config.output_dir)
        cells.append(_cell(config, model or _checked_name(config.model_folder.name), given))
    if faults:
        raise ConfigError("\n".join(f"{name}: {fault}" for fault, name in faults.items()))
    for config in {cell.model: cell.config for cell in cells}.values():
        read_shape(config)
    return roots[0], cells


def _cell(config: RunConfig, model: str, given: tuple[str, ...]) -> Cell:
    """A cell in its own folder below the recipe's run.output_dir."""
    method, seed = config.tuning.method, config.run.seed
    folder = str(config.output_dir / method / model / f"seed-{seed}")
    run = config.run.model_copy(update={"output_dir": folder})
    given += (f"run.output_dir={json.dumps(folder)}",)
    return Cell(method, model, seed, given, config.model_copy(update={"run": run}))


def _settings(request: Request) -> dict[str, list[str]]:
    """The overrides of each method."""
    _refuse_overrides("--methods", request.methods)
    for name, asked in (("--methods", request.methods), ("--seeds", request.seeds)):
        if len(set(asked)) < len(asked):
            raise ConfigError(f"{name} {' '.join(map(str, asked))}: one stands twice")
    own: dict[str, list[str]] = {method: [] for method in request.methods}
    for text in request.settings:
        method, colon, override = text.partition(":")
        if not colon or method not in own:
            raise ConfigError(
                f"--set {text}: it reads METHOD:section.key=value, METHOD one of {list(own)}"
            )
        own[method].append(override)
    for override in [*request.overrides, *(text for texts in own.values() for text in texts)]:
        key = override.partition("=")[0]
        if key in _OWNED[:1] or (key in _OWNED and override not in request.overrides):
            raise ConfigError(f"{override}: a sweep sets {key} of every cell; remove it")
    return own


def _model_overrides(request: Request) -> dict[str, tuple[str, ...]]:
    """The overrides of each model by its name: weights where the folder has them, else random."""
    _refuse_overrides("--models", request.models)
    models: dict[str, tuple[str, ...]] = {}
    for text in request.models:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text).resolve()
        name = _checked_name(name if equals else path.name)
        if name in models:
            raise ConfigError(f"--models: two are named {name}; write NAME=FOLDER")
        has_weights = any(path.glob("*.safetensors"))
        key, other = ("path", "config") if has_weights else ("config", "path")
        models[name] = (f"model.{key}={json.dumps(str(path))}", f"model.{other}=null")
    return models or {"": ()}


def _refuse_overrides(option: str, texts: Sequence[str]) -> None:
    """An option takes every argument after it, also overrides of the recipe."""
    for text in texts:
        key, equals, _ = text.partition("=")
        section, dot, _ = key.partition(".")
        if equals and dot and section in RunConfig.model_fields:
            raise ConfigError(f"{option} {text}: keys of all cells stand right behind RECIPE")


def _checked_name(name: str) -> str:
    """A name that is also safe as the name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} cannot name a model's folder; write --models NAME=FOLDER")
    return name
