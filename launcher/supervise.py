"""Train on the nodes of a hostfile and restart after faults until the run is done:

    launcher/supervise.py --hostfile HOSTFILE [options] -- train.py RECIPE [section.key=value ...]

Exit codes: 0 done; 75 stopped by a signal, and the same command continues from a checkpoint; 5
hosts do not answer, or none of the last attempts reached a new checkpoint; 2, 3, 4, 6 as train.py,
where another attempt would fail alike; 130 stopped by a signal before the first checkpoint.
"""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.text.escaping import escaped
from launcher import command


def main(arguments: list[str]) -> int:
    """Supervise a run; return the exit code."""
    parser = command.command_parser(__doc__)
    add = parser.add_argument
    add("--hostfile", type=Path, required=True, help="NAME slots=GPUS a line")
    add("--launcher", choices=("pdsh", "openmpi"), default="pdsh", help="default: pdsh")
    add("--launcher_args", default="", help="passed on to pdsh or mpirun")
    add(
        "--max-restarts",
        type=int,
        default=3,
        metavar="N",
        help="in a row without a new checkpoint (3)",
    )
    add(
        "--wait",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="for hosts that stopped answering (300)",
    )
    add("--continue-without-dead", action="store_true", help="go on with the hosts that answer")
    add("train", nargs="+", help="train.py RECIPE [section.key=value ...]")
    return command.main(parser, _supervise, arguments)


def _supervise(given: Namespace) -> int:
    from trainer.cluster.supervision import Limits, Signals, SupervisedRun, supervise
    from trainer.config.recipe import load_run_config
    from trainer.errors import ConfigError
    from trainer.processes.hostfile import read_hostfile, refuse_aliases

    script, *rest = given.train
    own_script = Path(__file__).resolve().with_name("train.py")
    if Path(script).name != own_script.name:
        raise ConfigError(f"{script!r} cannot be supervised; give train.py RECIPE after --")
    train = command.recipe_parser("train.py").parse_args(rest)
    limits = Limits(given.max_restarts, given.wait, given.continue_without_dead)
    nodes = read_hostfile(given.hostfile)
    refuse_aliases(given.hostfile, nodes)
    config = load_run_config(train.recipe, train.overrides)
    run = SupervisedRun(config, nodes, given.launcher, given.launcher_args, own_script)
    return supervise(
        run, limits, Signals(), lambda line: print(escaped(f"supervise: {line}"), file=sys.stderr)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
