"""What the commands do with a recipe or a model; torch comes only after the input is sound."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError
from data.prepared.prepare import Prepared, Split, read_split
from data.prepared.sources import sources_digest
from data.readers import locate, named_files
from data.readers.reading import listed
from data.text.escaping import escaped
from trainer.config.recipe import DATA_PATHS, config_of, load_run_config
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.models.files import check_model_files
from trainer.processes.imports import stack_imports
from trainer.processes.launched import check_launch
from trainer.processes.launchers import Launcher
from trainer.processes.ranks import adopt_launcher
from trainer.run.preparation import prepare_run
from trainer.run.trained import Trained, open_trained
from trainer.run_folder.folder import RECIPE

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

FILE_KEYS = ("data.fields", "data.format", "data.labels", "data.query")  # of files to score
_OF_BOTH = ("data.cache_dir",)  # of those files and of the training data


def train_recipe(path: Path, overrides: Sequence[str], above: Sequence[Launcher]) -> None:
    """Train a recipe as one rank of those that the launchers above started."""
    config = load_run_config(path, overrides)
    store = joined(config)
    prepared = prepare_run(config)
    check_model_files(config, prepared.tokenizer.vocab_size, prepared.tokenizer.end_id)
    without_bitsandbytes(config)
    with stack_imports():
        from trainer.run.training import run_training

    run_training(config, prepared, above, store)


def evaluate_model(
    model: Path,
    files: Sequence[Path],
    name: str | None,
    overrides: Sequence[str] = (),
    *,
    base: Path | None = None,
    output: Path | None = None,
    robustness: bool = False,
) -> None:
    """Score files as one split with a trained model; write report/NAME.* and print its table.

    Without a name the report has the first file's name up to its first dot. Where the training
    data are not here, the baselines that learn from them are left out. As one rank of those that
    the launchers above started, it scores its share.

    Args:
        model: A finished run, or a trained model's folder.
        files: Files, folders, globs or archives.
        overrides: Where the training data are, and how the files are read (FILE_KEYS), as
            section.key=value.
        base: Its folder, where that has moved.
        output: Receives report/; None: the run, or FOLDER.evaluated of a model without one.
        robustness: Score functions again after changes that keep what they do.

    Raises:
        ConfigError: The name is not one, or it belongs to the run's own test file; robustness of
            a model that did not learn functions.
        DataError: A file cannot be read.
        ModelError: The folder holds no trained model, or its base is missing or another.
    """
    name = name or files[0].name.partition(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} cannot name a report; give --name in letters, digits and ._-")
    of_files, of_training = _divided(overrides)
    trained = open_trained(model, base, of_files)
    config = trained.config
    if robustness and config.is_language:
        raise ConfigError(
            f"--robustness changes functions, but {model} learned {config.task.name}; leave it out"
        )
    given = [str(file) for file in files]
    paths = named_files(given, "FILE", config.data, split="test", language=config.is_language)
    alone = dict(os.environ)
    adopt_launcher(alone)
    store = joined(config) if alone["WORLD_SIZE"] != "1" else None
    prepared, left_out = _training_data(trained, of_training)
    if name == "test" and not _is_test_split(paths, prepared):
        raise ConfigError(
            f"{listed(given)} is not the run's own test file; give its report another --name"
        )
    without_bitsandbytes(config)
    with stack_imports():
        from trainer.run.saved_run import FilesToScore, evaluate_files

    title = listed(file.name for file in files)
    folder = output.resolve() if output else config.output_dir
    to_score = FilesToScore(paths, name, title, folder, robustness)
    evaluate_files(trained, prepared, to_score, store, left_out)


def merge_model(
    model: Path, output: Path, onto: str, overrides: Sequence[str] = (), base: Path | None = None
) -> None:
    """Merge the adapter of a trained model into its base and print how far the logits move.

    Args:
        model: A finished run, or a trained model's folder.
        onto: "dequantized" or "full".
        overrides: Where the training data are, as section.key=value; data.valid can be any file.
        base: Its folder, where that has moved.

    Raises:
        ConfigError: The folder exists, or the method cannot be merged.
        ModelError: The folder holds no trained model, or the base does not load.
    """
    _, of_training = _divided(overrides)
    trained = open_trained(model, base)
    valid, not_measured = None, ""
    try:
        valid = _valid(trained, of_training).examples
    except DataError as error:
        if _names_data(of_training):
            raise
        not_measured = f"; how far its logits move was not measured: {error}; give data.valid=FILE"
    without_bitsandbytes(trained.config)
    with stack_imports():
        from trainer.run.merge import merge_adapter

    merge = merge_adapter(trained, valid, output.resolve(), onto)
    moves = not_measured or _moves(trained.config, merge)
    print(f"{output}: merged onto the {merge['onto']} base{moves}")
    if not trained.config.is_language:
        changed = trained.config.data.normalize_whitespace
        print(
            f"the model read every function with {trained.tokenizer.end_token!r} after it"
            f"{'' if changed == 'none' else f', whitespace changed by {changed!r}'}: other tools"
            " have to do the same for these scores"
        )


def joined(config: RunConfig) -> "Store | None":
    """The store where the ranks of the launchers above have met; None for one process alone."""
    remarks = adopt_launcher(os.environ)
    if os.environ["RANK"] == "0":
        sys.stderr.write(escaped("".join(f"{line}\n" for line in remarks)))
    check_launch(int(os.environ["WORLD_SIZE"]))
    if os.environ["WORLD_SIZE"] == "1":
        return None
    # Before the data: a node may have to prepare it for long.
    from trainer.processes.rendezvous import meet

    return meet(config.engine.join_seconds)


def without_bitsandbytes(config: RunConfig) -> None:
    """Let this process find no bitsandbytes where its recipe needs none.

    PEFT and torch import it wherever they find it, and it imports torch's compiler: a third of a
    start. None in sys.modules is Python's own way to say that a package is not there.
    """
    if config.tuning.base_quant_type is None and config.optim.optimizer == "adamw":
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def _moves(config: RunConfig, drift: Mapping[str, Any]) -> str:
    unit = "targets" if config.is_language else "functions"
    return (
        f"; logits of {drift['num_functions']} validation {unit} move by"
        f" {drift['max_logit_difference']:.2e} at most, {drift['mean_logit_difference']:.2e} on"
        f" average (largest logit {drift['largest_logit']:.2f})"
    )


def _valid(trained: Trained, overrides: Sequence[str]) -> Split:
    """The validation split alone; it can be a part of train."""
    config = _training_config(trained, overrides)
    paths = locate(config.data, "valid", language=config.is_language)
    if not paths:
        return prepare_run(config).splits["valid"]
    return read_split(
        paths, "valid", config.data, trained.tokenizer,
        language=config.is_language, classes=trained.classes,
    )[0]  # fmt: skip


def _training_config(trained: Trained, overrides: Sequence[str]) -> RunConfig:
    """The recipe by which a model's data are read again: where the run said, or where they are now.

    Raises:
        DataError: Nothing says where they are.
    """
    run, config = trained.run, trained.config
    own = {
        "model.path": config.model.path, "model.config": None,
        "data.tokenizer": str(trained.folder), "run.output_dir": str(config.output_dir),
    }  # fmt: skip
    given = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in own.items())]
    if run is not None:
        return load_run_config(run / RECIPE, given)
    if not _names_data(overrides):
        raise DataError(f"{trained.folder} is without its run; give data.path=FOLDER")
    return config_of(trained.facts["recipe"], given, trained.folder)


def _training_data(trained: Trained, overrides: Sequence[str]) -> tuple[Prepared, str]:
    """A model's data; or what it knows of them, and why the baselines are left out.

    Raises:
        DataError: Data that are given cannot be read, or are others.
    """
    try:
        prepared = prepare_run(_training_config(trained, overrides))
        _refuse_other_data(trained, prepared)
    except DataError as error:
        if _names_data(overrides):
            raise
        left_out = f"baselines that learn from the run's data are left out: {error}"
        return trained.prepared, left_out
    return prepared, ""


def _refuse_other_data(trained: Trained, prepared: Prepared) -> None:
    """Refuse to compare a model with baselines that learn from other data.

    Raises:
        DataError: It names the splits.
    """
    own, found = trained.prepared.digests, prepared.digests
    if odd := [name for name in ("train", "valid") if own[name] != found[name]]:
        raise DataError(
            f"{' and '.join(odd)} differ from what {trained.folder} was trained on; give its own"
            " data.path"
        )


def _divided(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is given of the files that are scored, and of the training data.

    Raises:
        ConfigError: Another key.
    """
    of_files, of_training = list[str](), list[str]()
    for text in overrides:
        key = text.partition("=")[0]
        if key not in (*FILE_KEYS, *DATA_PATHS):
            raise ConfigError(
                f"{key[:80]!r}: of a trained model only these can be given:"
                f" {', '.join((*DATA_PATHS, *FILE_KEYS))}; a base that has moved is --base FOLDER"
            )
        if key in (*FILE_KEYS, *_OF_BOTH):
            of_files.append(text)
        if key not in FILE_KEYS:
            of_training.append(text)
    return of_files, of_training


def _names_data(of_training: Sequence[str]) -> bool:
    return any(text.partition("=")[0] not in _OF_BOTH for text in of_training)


def _is_test_split(paths: list[Path], prepared: Prepared) -> bool:
    is_held_out = "test" in prepared.facts.get("held_out", {})
    return not is_held_out and sources_digest(paths) == prepared.digests["test"]
