"""Train on the nodes of a hostfile and restart after faults until the run is done:

    launcher/supervise.py --hostfile HOSTFILE [options] -- train.py RECIPE [section.key=value ...]

Exit codes: 0 done; 75 stopped by a signal, and the same command continues from a checkpoint; 5
hosts do not answer, or none of the last attempts reached a new checkpoint; 2, 3, 4, 6 as train.py,
where another attempt would fail alike; 130 stopped by a signal before the first checkpoint.
"""

import math
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command

SCRIPT = Path(__file__).resolve().with_name("train.py")


def main(arguments: list[str]) -> int:
    """Supervise a run; return the exit code."""
    parser = command.command_parser(__doc__)
    parser.add_argument("--hostfile", type=Path, required=True, help="NAME slots=GPUS a line")
    parser.add_argument("--launcher", choices=("pdsh", "openmpi"), default="pdsh")
    parser.add_argument("--launcher_args", default="", help="passed on to pdsh or mpirun")
    parser.add_argument(
        "--max-restarts", type=int, default=3, help="in a row without a new checkpoint"
    )
    parser.add_argument(
        "--wait", type=float, default=300.0, help="seconds for hosts that stopped answering"
    )
    parser.add_argument(
        "--continue-without-dead", action="store_true", help="go on with the hosts that answer"
    )
    parser.add_argument("train", nargs="+", help="train.py RECIPE [section.key=value ...]")
    return command.main(parser, _supervise, arguments)


def _supervise(given: Namespace) -> int:
    from trainer.cluster.supervision import Limits, Signals, SupervisedRun, supervise
    from trainer.config.recipe import load_run_config
    from trainer.errors import ConfigError
    from trainer.processes.hostfile import read_hostfile, refuse_aliases

    script, *rest = given.train
    if Path(script).name != SCRIPT.name:
        raise ConfigError(f"{script!r} cannot be supervised; give train.py RECIPE after --")
    if given.max_restarts < 0 or not 0 <= given.wait < math.inf:
        raise ConfigError("--max-restarts and --wait must be 0 or above")
    train = command.recipe_parser("train.py").parse_args(rest)
    nodes = read_hostfile(given.hostfile)
    refuse_aliases(given.hostfile, nodes)
    run = SupervisedRun(
        load_run_config(train.recipe, train.overrides), nodes, given.launcher,
        given.launcher_args, SCRIPT,
    )  # fmt: skip
    limits = Limits(given.max_restarts, given.wait, given.continue_without_dead)
    return supervise(run, limits, Signals(), _say)


def _say(line: str) -> None:
    sys.stderr.write(f"supervise: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
