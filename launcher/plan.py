"""Will it fit, how long, what to change: launcher/plan.py RECIPE [--device NAME] [KEY=VALUE ...].

Arithmetic on the model's config.json and the data's counts; needs no GPU, no weights, no torch.

    --device NAME          T4, RTX3060, RTX4080, RTX4090, V100-16, V100-32, A100-40, A100-80, H100
                           or H200; without it, a table of all of them
    --gpus N               ranks (default 1)
    --memory G             GiB of a GPU that is not in the table
    --json                 one JSON object instead of the picture
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
    parser.add_argument("--device", help="a GPU of the table")
    parser.add_argument("--gpus", type=int, default=1, help="ranks")
    parser.add_argument("--memory", type=float, help="GiB of a GPU that is not in the table")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return command.main(parser, _plan, arguments)


def _plan(given: Namespace) -> None:
    from trainer.config.recipe import load_run_config
    from trainer.errors import ConfigError, MachineError
    from trainer.planning.change import best_change
    from trainer.planning.data_facts import data_facts
    from trainer.planning.devices import DEVICES, device_named, other_device
    from trainer.planning.job import Machine
    from trainer.planning.plan import make_plan, plans_on, read_shape
    from trainer.planning.view import print_plan

    config = load_run_config(given.recipe, given.overrides)
    if given.device and given.memory:
        raise ConfigError("give --device or --memory, not both")
    if given.gpus < 1 or (given.memory is not None and given.memory <= 0):
        raise ConfigError("--gpus and --memory must be above 0")
    device = DEVICES["A100-80"]
    if given.device:
        device = device_named(given.device)
    elif given.memory:
        device = other_device(given.memory)
    shape, data = read_shape(config), data_facts(config)
    machine = Machine(device, given.gpus)
    plan = make_plan(config, shape, machine, data)
    change = None if plan.fits else best_change(config, shape, machine, data)
    is_asked = bool(given.device or given.memory)
    others = [] if is_asked else plans_on(config, shape, DEVICES, given.gpus, data)
    if given.json:
        values = plan.to_json() | {"devices": [other.to_json() for other in others]}
        if change is not None:
            values["best_change"] = {"override": change.override, **change.plan.to_json()}
        print(json.dumps(values, indent=1))
    else:
        print_plan(plan, others, change)
    if is_asked and not plan.fits:
        raise MachineError(f"{given.recipe} does not fit {machine.name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
