"""Will it fit, how long, what to change: launcher/plan.py RECIPE [--device NAME] [KEY=VALUE ...].

Arithmetic on the model's config.json and the data's counts; needs no GPU, no weights, no torch.
Without --device or --memory it adds a table of all GPUs it knows.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Print the plan; return the exit code, 5 if the named device is too small."""
    parser = command.recipe_parser(__doc__)
    parser.add_argument(
        "--device", metavar="NAME",
        help="T4, RTX3060, RTX4080, RTX4090, V100-16, V100-32, A100-40, A100-80, H100 or H200",
    )  # fmt: skip
    parser.add_argument("--memory", type=float, metavar="GIB", help="of a GPU not in the table")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks (default: 1)")
    parser.add_argument(
        "--host-memory", type=float, metavar="GIB", help="of the node of these GPUs, to refuse"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, not the picture")
    return command.main(parser, _plan, arguments)


def _plan(given: Namespace) -> None:
    from trainer.config.recipe import load_run_config
    from trainer.errors import MachineError
    from trainer.planning.planned import plan_recipe
    from trainer.planning.view import print_plan

    config = load_run_config(given.recipe, given.overrides)
    planned = plan_recipe(config, given.device, given.memory, given.gpus, given.host_memory)
    if given.json:
        print(json.dumps(planned.to_json(), indent=1))
    else:
        print_plan(planned.plan, planned.others, planned.change)
    if not planned.others and not planned.plan.fits:
        raise MachineError(f"{given.recipe} does not fit {planned.plan.machine}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
