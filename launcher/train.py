"""Fine-tune a code model: deepspeed launcher/train.py RECIPE [section.key=value ...]."""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Train the recipe; return the exit code."""
    return command.main(command.recipe_parser(__doc__), _train, arguments)


def _train(given: Namespace) -> None:
    from trainer.processes.launchers import launchers_above

    above = launchers_above()  # first: one that ends while the rest loads must be noticed

    from trainer.run.commands import train_recipe

    train_recipe(given.recipe, given.overrides, above)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
