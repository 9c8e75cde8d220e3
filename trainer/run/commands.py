"""What the commands do with a recipe or a run; torch is imported only after the input is sound."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError, json_object, parsing
from data.prepared.prepare import Prepared, Split, read_split, remembered
from data.prepared.sources import sources_digest
from data.readers import locate, named_files
from data.readers.reading import listed
from data.text.escaping import escaped
from trainer.config.recipe import MOVABLE, load_run_config
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError, ModelError
from trainer.models.files import check_model_files, refuse_adapter
from trainer.processes.imports import stack_imports
from trainer.processes.launched import check_launch
from trainer.processes.launchers import Launcher
from trainer.processes.ranks import adopt_launcher
from trainer.run.preparation import prepare_run
from trainer.run_folder.folder import DATA, RECIPE

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

FILE_KEYS = ("data.fields", "data.format", "data.labels", "data.query")  # of files to score
_COPY = "copy the run folder again"


def train_recipe(path: Path, overrides: Sequence[str], above: Sequence[Launcher]) -> None:
    """Train a recipe as one rank of those that the launchers above started."""
    config = load_run_config(path, overrides)
    store = _joined(config)
    prepared = prepare_run(config)
    check_model_files(config, prepared.tokenizer.vocab_size, prepared.tokenizer.end_id)
    _without_bitsandbytes(config)
    with stack_imports():
        from trainer.run.training import run_training

    run_training(config, prepared, above, store)


def evaluate_run(
    run: Path,
    files: Sequence[Path],
    name: str | None,
    overrides: Sequence[str] = (),
    *,
    robustness: bool = False,
) -> None:
    """Score files as one split with a finished run; write report/NAME.* and print its table.

    Without a name the report has the first file's name up to its first dot. Where the run's data
    are not here, the baselines that learn from them are left out. As one rank of those that the
    launchers above started, it scores its share.

    Args:
        files: Files, folders, globs or archives.
        overrides: Paths that have moved, and how the files are read (FILE_KEYS), as
            section.key=value.
        robustness: Score functions again after changes that keep what they do.

    Raises:
        ConfigError: The name is not one, or it belongs to the run's own test file; robustness of
            a run that did not learn functions.
        DataError: A file cannot be read.
        ModelError: The run has no validated checkpoint.
    """
    name = name or files[0].name.partition(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} cannot name a report; give --name in letters, digits and ._-")
    config = _recipe_of(run, [text for text in overrides if not _is_of_files(text)])
    if robustness and config.is_language:
        raise ConfigError(
            f"--robustness changes functions, but {run} learned {config.task.name}; leave it out"
        )
    read_as = _recipe_of(run, overrides, (*MOVABLE, *FILE_KEYS)).data
    given = [str(file) for file in files]
    paths = named_files(given, "FILE", read_as, split="test", language=config.is_language)
    alone = dict(os.environ)
    adopt_launcher(alone)
    store = _joined(config) if alone["WORLD_SIZE"] != "1" else None
    left_out = ""
    try:
        prepared = prepare_run(config)
    except DataError as error:
        if _names_data(overrides):
            raise
        prepared = _remembered(config)
        left_out = f"baselines that learn from the run's data are left out: {error}"
    check_model_files(config, prepared.tokenizer.vocab_size)
    if name == "test" and not _is_test_split(paths, prepared):
        raise ConfigError(
            f"{listed(given)} is not the run's own test file; give its report another --name"
        )
    _without_bitsandbytes(config)
    with stack_imports():
        from trainer.run.saved_run import FilesToScore, evaluate_files

    title = listed(file.name for file in files)
    to_score = FilesToScore(paths, name, title, read_as, robustness)
    evaluate_files(config, prepared, to_score, store, left_out)


def merge_run(run: Path, output: Path, onto: str, overrides: Sequence[str] = ()) -> None:
    """Merge the adapter of a finished run into its base and print how far the logits move.

    Args:
        onto: "dequantized" or "full".
        overrides: Paths that have moved, as section.key=value; data.valid can be any file.

    Raises:
        ConfigError: The folder exists, or the method cannot be merged.
        ModelError: The run has no validated checkpoint, or the base does not load.
    """
    config = _recipe_of(run, overrides)
    prepared = _remembered(config)
    check_model_files(config, prepared.tokenizer.vocab_size)
    not_measured = ""
    try:
        prepared = replace(prepared, splits={"valid": _valid(config, prepared)})
    except DataError as error:
        if _names_data(overrides):
            raise
        not_measured = f"; how far its logits move was not measured: {error}; give data.valid=FILE"
    _without_bitsandbytes(config)
    with stack_imports():
        from trainer.run.merge import merge_adapter

    merge = merge_adapter(config, prepared, output.resolve(), onto)
    print(f"{output}: merged onto the {merge['onto']} base{not_measured or _moves(config, merge)}")
    if not config.is_language:
        changed = config.data.normalize_whitespace
        print(
            f"the model read every function with {prepared.tokenizer.end_token!r} after it"
            f"{'' if changed == 'none' else f', whitespace changed by {changed!r}'}: other tools"
            " have to do the same for these scores"
        )


def _joined(config: RunConfig) -> "Store | None":
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


def _without_bitsandbytes(config: RunConfig) -> None:
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


def _valid(config: RunConfig, remembered: Prepared) -> Split:
    """The validation split alone; it can be a part of train."""
    paths = locate(config.data, "valid", language=config.is_language)
    if not paths:
        return prepare_run(config).splits["valid"]
    return read_split(
        paths, "valid", config.data, remembered.tokenizer,
        language=config.is_language, classes=remembered.classes,
    )[0]  # fmt: skip


def _remembered(config: RunConfig) -> Prepared:
    """What the run folder knows of its data, which may be gone."""
    refuse_adapter(config.model)
    path, language = config.output_dir / DATA, config.is_language
    facts = json_object(path, ModelError, _COPY)
    with parsing(f"{path} cannot be used", ModelError, _COPY):
        found = remembered(facts, config.data, config.tokenizer_folder, language=language)
        if not (facts["splits"]["train"]["kinds"] if language else found.prior_C.all()):
            raise ValueError("its counts are not those of a training split")
    return found


def _is_of_files(override: str) -> bool:
    """Whether it says how files are read that the run never saw."""
    return override.partition("=")[0] in FILE_KEYS


def _names_data(overrides: Sequence[str]) -> bool:
    return any(text.startswith("data.") and not _is_of_files(text) for text in overrides)


def _recipe_of(run: Path, overrides: Sequence[str], allowed: Sequence[str] = MOVABLE) -> RunConfig:
    """The recipe of a finished run, which may have moved, as its base and data may."""
    for text in overrides:
        if (name := text.partition("=")[0]) not in allowed:
            raise ConfigError(
                f"{name[:80]!r}: of a finished run only these can be given: {', '.join(allowed)}"
            )
    here = f"run.output_dir={json.dumps(str(run.resolve()))}"
    try:
        return load_run_config(run / RECIPE, [*overrides, here])
    except ConfigError as error:
        more = "give again what has moved since the run, e.g. model.path=FOLDER"
        raise ConfigError(f"{error}\n{more}") from error


def _is_test_split(paths: list[Path], prepared: Prepared) -> bool:
    is_held_out = "test" in prepared.facts.get("held_out", {})
    return not is_held_out and sources_digest(paths) == prepared.digests["test"]
