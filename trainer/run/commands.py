"""What the commands do with a recipe or a model; torch comes only after the input is sound."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DataError
from data.prepared.prepare import Prepared
from data.prepared.sources import sources_digest
from data.readers import named_files
from data.readers.reading import listed
from data.text import terminal
from trainer.config.methods import BITSANDBYTES
from trainer.config.recipe import DATA_PATHS, load_run_config
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.evaluation.suites.items import first_shape
from trainer.evaluation.suites.suites import SUITES
from trainer.models.files import check_model_files
from trainer.processes.imports import stack_imports
from trainer.processes.launched import check_launch
from trainer.processes.launchers import Launcher
from trainer.processes.ranks import adopt_launcher
from trainer.run.export_rows import export_rows
from trainer.run.passport import original_run
from trainer.run.preparation import prepare_run, print_lines
from trainer.run.trained import Trained, open_trained
from trainer.run_folder.trackers import check_trackers

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

FILE_KEYS = ("data.fields", "data.format", "data.labels", "data.query")  # of files to score
_OF_BOTH = ("data.cache_dir",)  # of those files and of the training data


def train_recipe(
    path: Path, overrides: Sequence[str], above: Sequence[Launcher], *, is_repeat: bool = False
) -> None:
    """Train a recipe as one rank of those that the launchers above started.

    Args:
        path: The recipe; of a repeat, the run that is done again.
    """
    original = None
    if is_repeat:
        config, original = original_run(path, overrides)
    else:
        config = load_run_config(path, overrides)
    check_trackers(config.log.trackers)
    store = joined(config)
    prepared = prepare_run(config)
    check_model_files(config, prepared.tokenizer.vocab_size, prepared.tokenizer.end_id)
    without_unused(config)
    with stack_imports():
        from trainer.run.training import run_training

    run_training(config, prepared, above, store, original)


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
            a model that did not learn functions; a file is a suite of programs.
        DataError: A file cannot be read.
        ModelError: The folder holds no trained model, or its base is missing or another.
    """
    name = name or files[0].name.partition(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} cannot name a report; give --name in letters, digits and ._-")
    of_files, of_training, base = _divided(overrides, base)
    trained = open_trained(model, base, of_files)
    config = trained.config
    if robustness and config.is_language:
        raise ConfigError(
            f"--robustness changes functions, but {model} learned {config.task.name}; leave it out"
        )
    given = [str(file) for file in files]
    paths = named_files(given, "FILE", config.data, split="test", language=config.is_language)
    _refuse_suites(model, paths)
    store = joined_if_several(config)
    prepared, left_out = _training_data(trained, of_training)
    if name == "test" and not _is_test_split(paths, prepared):
        raise ConfigError(
            f"{listed(given)} is not the run's own test file; give its report another --name"
        )
    without_unused(config)
    with stack_imports():
        from trainer.run.saved_run import FilesToScore, evaluate_files

    title = listed(file.name for file in files)
    folder = output.resolve() if output else config.output_dir
    to_score = FilesToScore(paths, name, title, folder, robustness)
    evaluate_files(trained, prepared, to_score, store, left_out)


def _refuse_suites(model: Path, files: Sequence[Path]) -> None:
    """A suite's tests are to be run; as a text they would get a loss that says nothing."""
    for file in files:
        shape = first_shape(file)
        names = [name for name, suite in SUITES.items() if suite.shape == shape]
        if shape is not None and all(SUITES[name].runs_programs for name in names):
            others = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise ConfigError(
                f"{file} holds {shape}, programs to write and run, not texts to score; use"
                f" launcher/suite.py {model} {names[0] if names else shape} --data {file}{others}"
            )


def export_trained(
    model: Path,
    output: Path,
    *,
    merge: bool = False,
    onto: str = "dequantized",
    dtype: str | None = None,
    is_onnx: bool = False,
    base: Path | None = None,
    rows: Path | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Write a trained model for stock tools; print how far the scores they give are from ours.

    Args:
        model: A finished run, or a trained model's folder.
        output: A new folder.
        merge: Adapter and base as one model.
        onto: "dequantized" or "full", of a merge.
        dtype: Of the weights of one model, as torch names it; None: that of the run.
        is_onnx: With model.onnx beside the weights.
        base: Its folder, where that has moved.
        rows: What is scored; None: the run's validation split, or else embedded functions.
        overrides: How the rows are read (FILE_KEYS).

    Raises:
        ConfigError: The folder exists, or the method has no such form.
        DataError: The rows cannot be read.
        ModelError: The folder holds no trained model, or stock tools give other scores.
    """
    of_files, of_training, base = _divided(overrides, base)
    if _names_data(of_training):
        raise ConfigError(f"{of_training[0]}: rows to compare are --data FILE")
    trained = open_trained(model, base, of_files)
    found = export_rows(trained, rows)
    without_unused(trained.config)
    with stack_imports():
        from trainer.run.export import Wanted, export_model

    check = export_model(trained, found, Wanted(output.resolve(), merge, onto, dtype, is_onnx))
    print_lines([f"{output}: {check.line}"])


def joined(config: RunConfig) -> "Store | None":
    """The store where the ranks of the launchers above have met; None for one process alone."""
    remarks = adopt_launcher(os.environ)
    terminal.say(*remarks)
    check_launch(int(os.environ["WORLD_SIZE"]))
    if os.environ["WORLD_SIZE"] == "1":
        return None
    # Before the data: a node may have to prepare it for long.
    from trainer.processes.rendezvous import meet

    return meet(config.engine.join_seconds)


def joined_if_several(config: RunConfig) -> "Store | None":
    """As `joined`; one process alone leaves the variables of launchers as they are."""
    seen = dict(os.environ)
    adopt_launcher(seen)
    return joined(config) if seen["WORLD_SIZE"] != "1" else None


def without_unused(config: RunConfig) -> None:
    """Let this process find no package that its recipe needs not and others would import.

    PEFT and torch import bitsandbytes wherever they find it, and with it torch's compiler: a third
    of a start; DeepSpeed imports mlflow, and with it pandas. None in sys.modules is Python's own
    way to say that a package is not there.
    """
    is_plain = config.tuning.base_quant_type is None and config.optim.optimizer not in BITSANDBYTES
    unused = ["bitsandbytes"] * is_plain + ["mlflow"] * ("mlflow" not in config.log.trackers)
    for name in unused:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def _training_data(trained: Trained, overrides: Sequence[str]) -> tuple[Prepared, str]:
    """A model's data where its report needs them; or why the baselines are left out.

    Raises:
        DataError: Data that are given cannot be read, or are others.
    """
    is_learned = trained.baselines is not None or not trained.classes.is_binary
    if is_learned and not trained.config.is_language and not _names_data(overrides):
        return trained.prepared, ""
    try:
        prepared = prepare_run(trained.training_config(overrides))
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


def _divided(
    overrides: Sequence[str], base: Path | None
) -> tuple[list[str], list[str], Path | None]:
    """What is given of the files that are scored, of the training data, and the base.

    Raises:
        ConfigError: Another key.
    """
    of_files, of_training = list[str](), list[str]()
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "model.path" and base is None:
            base = Path(value)
            continue
        if key not in (*FILE_KEYS, *DATA_PATHS):
            raise ConfigError(
                f"{key[:80]!r}: of a trained model only these can be given:"
                f" {', '.join((*DATA_PATHS, *FILE_KEYS))}; a base that has moved is --base FOLDER"
            )
        if key in (*FILE_KEYS, *_OF_BOTH):
            of_files.append(text)
        if key not in FILE_KEYS:
            of_training.append(text)
    return of_files, of_training, base


def _names_data(of_training: Sequence[str]) -> bool:
    return any(text.partition("=")[0] not in _OF_BOTH for text in of_training)


def _is_test_split(paths: list[Path], prepared: Prepared) -> bool:
    is_held_out = "test" in prepared.facts.get("held_out", {})
    return not is_held_out and sources_digest(paths) == prepared.digests["test"]
