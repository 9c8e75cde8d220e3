"""Fine-tune a code model: deepspeed launcher/train.py RECIPE [section.key=value ...]."""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Train the recipe; return the exit code."""
    parser = command.recipe_parser(__doc__)
    parser.add_argument(
        "--repeat",
        action="store_true",
        help="RECIPE is a run's folder: train it again beside it, and say what differs",
    )
    return command.main(parser, _train, arguments)


def _train(given: Namespace) -> None:
    from trainer.processes.launchers import launchers_above

    above = launchers_above()  # first: one that ends while the rest loads must be noticed

    from trainer.run.commands import train_recipe

    train_recipe(given.recipe, given.overrides, above, is_repeat=given.repeat)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
