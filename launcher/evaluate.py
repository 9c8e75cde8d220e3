"""Evaluate a trained model on other files: launcher/evaluate.py MODEL FILE ... [KEY=VALUE ...].

MODEL is a finished run, its model/, or a copy of that. A base that has moved is given again by
--base FOLDER. A model without its run needs data.path=FOLDER for the baselines that learn from the
training data, or they are left out. Files with other columns than those of the training take
data.fields={code: NAME, target: NAME}. Started by deepspeed, every rank scores a share.
"""

import argparse
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Write report/NAME.*; return the exit code."""
    parser = command.command_parser(__doc__)
    command.add_model(parser)
    parser.add_argument(
        "files", nargs="+", metavar="FILE | KEY=VALUE",
        help="what to score, as one split: files, folders, globs or archives; and where the"
        " training data are now (data.path=FOLDER) or how the files are read (data.fields={...})",
    )  # fmt: skip
    parser.add_argument(
        "--name", help="name of the report; default: the first file's name up to its first dot"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="folder for report/; default: the run, or MODEL.evaluated where there is none",
    )  # fmt: skip
    parser.add_argument(
        "--robustness", action="store_true",
        help="score functions again after changes that keep what they do: NAME_robustness.*",
    )  # fmt: skip
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return command.main(parser, _evaluate, arguments)


def _evaluate(given: Namespace) -> None:
    from trainer.errors import ConfigError
    from trainer.run.commands import evaluate_model

    files = [Path(text) for text in given.files if not command.is_key(text)]
    keys = [text for text in given.files if command.is_key(text)]
    if not files:
        raise ConfigError("give a file to score after the model")
    evaluate_model(
        given.model, files, given.name, keys,
        base=given.base, output=given.output, robustness=given.robustness,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
