"""Compare runs on the same test set: launcher/compare.py RUN RUN ... [--split NAME] [--out FOLDER].

Reads their reports and predictions, no model. The first run is what the others are compared with;
runs of the same settings and other seeds are one group. Writes index.html, compare.md, .json and
pictures.
"""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Compare; return the exit code."""
    parser = command.command_parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders of launcher/train.py"
    )
    parser.add_argument(
        "--split", metavar="NAME", default="test", help="name of their reports; default: test"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: comparison, beside the first run"
    )
    return command.main(parser, _compare, arguments)


def _compare(given: Namespace) -> None:
    from trainer.evaluation.comparison.compare import compare_runs

    compare_runs(given.runs, given.split, given.out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
