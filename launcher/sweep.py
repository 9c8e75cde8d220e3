"""Compare methods and settings: launcher/sweep.py RECIPE [KEY=VALUE ...] --methods M ...

Trains every method and setting on every model with every seed, each by its own launcher/train.py,
in OUTPUT_DIR/METHOD/MODEL/seed-N, and writes OUTPUT_DIR/report: report.md, report.csv and pictures.
The same command continues a sweep and skips finished cells. A failed cell is reported and the
others run. Keys for all cells follow RECIPE, those for one method follow --set:

    python launcher/sweep.py RECIPE optim.lr=1e-4 --methods full lora ia3 --models 1B 3B 7B
        --seeds 0 1 2 --set full:optim.lr=1e-6 ia3:optim.lr=1e-3
    python launcher/sweep.py RECIPE --grid optim.lr=1e-4,3e-4 tuning.lora_r=8,16 --seeds 0 1 2
"""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Run the grid and write its report; return the exit code of the first failed cell, or 0."""
    parser = command.recipe_parser(__doc__)
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="M",
        help="tuning.method; default: the recipe's",
    )  # fmt: skip
    parser.add_argument(
        "--grid", nargs="+", action="extend", default=[], metavar="KEY=VALUE,VALUE",
        help="values of any other key, each with each of the others",
    )  # fmt: skip
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="F",
        help="FOLDER or NAME=FOLDER; without weights they are random; default: the recipe's",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="run.seed")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="M:KEY=VALUE",
        help="a key of one method's cells",
    )  # fmt: skip
    parser.add_argument(
        "--budget", metavar="trained_parameters=N",
        help="or N%% of the base: the rank of every method is the largest that trains no more",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="ranks of a cell, by the deepspeed launcher"
    )
    parser.add_argument(
        "--suites", nargs="+", default=[], metavar="NAME", help="measure every cell on suites, too"
    )
    parser.add_argument(
        "--suite-data", type=Path, default=Path("suites"), metavar="FOLDER",
        help="launcher/suite.py's --data",
    )  # fmt: skip
    parser.add_argument("--report", action="store_true", help="train nothing, only report")
    return command.main(parser, _sweep, arguments)


def _sweep(given: Namespace) -> None:
    from trainer.errors import ConfigError
    from trainer.sweep.grid import expand

    if given.gpus is not None and given.gpus < 1:
        raise ConfigError("--gpus must be above 0")
    if not (given.methods or given.grid):
        raise ConfigError("give what is compared: --methods M M, --grid KEY=VALUE,VALUE, or both")
    root, cells = expand(
        given.recipe, given.overrides, given.methods, given.models, given.seeds, given.set,
        given.grid, given.budget,
    )  # fmt: skip

    if given.suites:
        from trainer.evaluation.suites.running import checked_names

        checked_names(given.suites)
        if not all(cell.config.is_language for cell in cells):
            raise ConfigError("--suites: classifiers write no answers; they are for language tasks")

    from trainer.sweep.sweep import run_sweep

    recipe = None if given.report else given.recipe
    run_sweep(root, cells, recipe, given.gpus, given.suites, given.suite_data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
