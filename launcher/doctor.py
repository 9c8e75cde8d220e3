"""Find what would make a run fail: launcher/doctor.py [RECIPE [KEY=VALUE ...]] [--hostfile F].

Checks this machine, or with --hostfile every node at once: ssh that asks no question; the same
Python, packages, code and recipe; GPUs for the slots; torch built for them; clocks; the shared run
folder; links. Shows all faults; exit code 5 if a run would fail, 2 if the hostfile is wrong.
"""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Print what was found; return the exit code."""
    if arguments == ["--node"]:
        return command.run_command(_serve)
    if arguments == ["--ring"]:
        return command.run_command(_ring)
    parser = command.command_parser(__doc__)
    parser.add_argument("recipe", nargs="?", help="a YAML file to look for on every node")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--hostfile", type=Path, help="lines NAME slots=GPUS")
    parser.add_argument("--master_port", type=int, default=29500, help="deepspeed's (29500)")
    return command.main(parser, _examine, arguments)


def _examine(given: Namespace) -> None:
    from trainer.cluster.doctor import PlannedRun, examine_cluster, examine_machine
    from trainer.cluster.doctor_view import print_cluster, print_machine
    from trainer.errors import ConfigError, MachineError

    if not 0 < given.master_port < 1 << 16:
        raise ConfigError(f"--master_port must be 1 to 65535, found {given.master_port}")
    planned = PlannedRun(given.recipe, given.overrides, given.master_port)
    if given.hostfile is None:
        found = examine_machine(planned)
        print_machine(found)
    else:
        found = examine_cluster(given.hostfile, planned)
        print_cluster(found)
    if found.has_faults:
        raise MachineError("a run would fail: see the faults above")


def _serve() -> None:
    from trainer.cluster.agent import serve

    serve(sys.stdin, sys.stdout)


def _ring() -> None:
    from trainer.cluster.mpi_ring import ring_rank

    ring_rank()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
