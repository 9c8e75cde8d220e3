"""Evaluate a finished run on another file: launcher/evaluate.py RUN_FOLDER FILE [--name NAME]."""

import json
import re
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Write report/NAME.* into the run folder; return the exit code."""
    parser = command.command_parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder of launcher/train.py")
    parser.add_argument("file", type=Path, help="what to score: any value of data.test")
    parser.add_argument(
        "--name", help="name of the report; default: the file's name up to its first dot"
    )
    return command.main(parser, _evaluate, arguments)


def _evaluate(given: Namespace) -> None:
    from data.errors import DataError
    from data.prepared.prepare import sources_digest
    from data.readers import named_files
    from trainer.config.recipe import load_run_config
    from trainer.errors import ConfigError
    from trainer.run.preparation import prepare_run

    run, file = given.run, given.file
    name = given.name or file.name.partition(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} cannot name a report; give --name in letters, digits and ._-")
    here = f"run.output_dir={json.dumps(str(run.resolve()))}"  # the run may have moved
    config = load_run_config(run / "config.yaml", [here])
    if not config.is_language and not file.exists():
        raise DataError(f"{file} does not exist (resolved: {file.resolve()})")
    paths = named_files(file, "FILE") if config.is_language else [file]
    prepared = prepare_run(config)
    is_held_out = "test" in prepared.facts.get("held_out", {})
    if name == "test" and (is_held_out or sources_digest(paths) != prepared.digests["test"]):
        raise ConfigError(f"{file} is not the run's own test file; give its report another --name")

    from trainer.run.saved_run import evaluate_files

    evaluate_files(config, prepared, paths, name, file.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
