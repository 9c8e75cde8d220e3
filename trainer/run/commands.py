"""What the commands do with a recipe or a run; torch is imported only after the input is sound."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from data.prepared.prepare import Prepared, sources_digest
from data.readers import named_files
from data.text.escaping import escaped
from trainer.config.recipe import load_run_config
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.models.files import check_model_files
from trainer.processes.launched import check_launch
from trainer.processes.launchers import Launcher
from trainer.processes.ranks import adopt_launcher
from trainer.run.preparation import prepare_run


def train_recipe(path: Path, overrides: Sequence[str], above: Sequence[Launcher]) -> None:
    """Train a recipe as one rank of those that the launchers above started."""
    config = load_run_config(path, overrides)
    remarks = adopt_launcher(os.environ)
    if os.environ["RANK"] == "0":
        sys.stderr.write(escaped("".join(f"{line}\n" for line in remarks)))
    check_launch(int(os.environ["WORLD_SIZE"]))
    store = None
    if os.environ["WORLD_SIZE"] != "1":  # before the data: a node may have to prepare it for long
        from trainer.processes.rendezvous import meet

        store = meet(config.engine.join_seconds)
    prepared = _checked(config)

    from trainer.run.training import run_training

    run_training(config, prepared, above, store)


def evaluate_run(run: Path, file: Path, name: str | None) -> None:
    """Score a file with a finished run; write report/NAME.* and print its table.

    Without a name the report has the file's name up to its first dot.

    Raises:
        ConfigError: The name is not one, or it belongs to the run's own test file.
        DataError: The file cannot be read.
        ModelError: The run has no validated checkpoint.
    """
    name = name or file.name.partition(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} cannot name a report; give --name in letters, digits and ._-")
    config = _recipe_of(run)
    paths = named_files(file, "FILE", config.data, language=config.is_language)
    prepared = _checked(config)
    if name == "test" and not _is_test_split(paths, prepared):
        raise ConfigError(f"{file} is not the run's own test file; give its report another --name")

    from trainer.run.saved_run import evaluate_files

    evaluate_files(config, prepared, paths, name, file.name)


def merge_run(run: Path, output: Path, onto: str) -> None:
    """Merge the adapter of a finished run into its base and print how far the logits move.

    Raises:
        ConfigError: The folder exists, or the method cannot be merged.
        ModelError: The run has no validated checkpoint, or the base does not load.
    """
    config = _recipe_of(run)
    prepared = _checked(config)

    from trainer.run.merge import merge_adapter

    drift = merge_adapter(config, prepared, output.resolve(), onto)
    unit = "targets" if config.is_language else "functions"
    print(
        f"{output}: merged onto the {drift['onto']} base; logits of {drift['num_functions']}"
        f" validation {unit} move by {drift['max_logit_difference']:.2e} at most,"
        f" {drift['mean_logit_difference']:.2e} on average (largest logit"
        f" {drift['largest_logit']:.2f})"
    )
    if not config.is_language:
        changed = config.data.normalize_whitespace
        print(
            f"the model read every function with {prepared.tokenizer.end_token!r} after it"
            f"{'' if changed == 'none' else f', whitespace changed by {changed!r}'}: other tools"
            " have to do the same for these scores"
        )


def _checked(config: RunConfig) -> Prepared:
    """The data of a recipe whose model folder is sound, too."""
    prepared = prepare_run(config)
    check_model_files(config, prepared.tokenizer.vocab_size, prepared.tokenizer.end_id)
    return prepared


def _recipe_of(run: Path) -> RunConfig:
    here = f"run.output_dir={json.dumps(str(run.resolve()))}"  # the run may have moved
    return load_run_config(run / "config.yaml", [here])


def _is_test_split(paths: list[Path], prepared: Prepared) -> bool:
    is_held_out = "test" in prepared.facts.get("held_out", {})
    return not is_held_out and sources_digest(paths) == prepared.digests["test"]
