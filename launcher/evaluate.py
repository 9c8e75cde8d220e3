"""Evaluate a finished run on another file: launcher/evaluate.py RUN FILE [KEY=PATH ...].

Base or data that have moved since the run are given again, e.g. model.path=FOLDER. Without the
training data, the baselines that learn from them are left out.
"""

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
    command.add_moved_paths(parser)
    parser.add_argument(
        "--name", help="name of the report; default: the file's name up to its first dot"
    )
    return command.main(parser, _evaluate, arguments)


def _evaluate(given: Namespace) -> None:
    from trainer.run.commands import evaluate_run

    evaluate_run(given.run, given.file, given.name, given.overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
