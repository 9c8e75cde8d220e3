"""Find what would make a run fail: launcher/doctor.py [RECIPE [KEY=VALUE ...]] [--hostfile F].

Checks this machine, or with --hostfile every node at once: ssh that asks no question; the same
Python, packages, code and recipe; GPUs for the slots; torch built for them; clocks; the shared run
folder; links. Shows all faults; exit code 5 if a run would fail, 2 if the hostfile is wrong.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Print what was found; return the exit code."""
    parser = command.command_parser(__doc__)
    parser.add_argument("recipe", nargs="?", help="a YAML file to look for on every node")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--hostfile", type=Path, metavar="FILE", help="lines NAME slots=GPUS")
    parser.add_argument("--master_port", type=int, default=29500, help="deepspeed's (29500)")
    for part in ("--node", "--ring"):  # how the doctor starts itself on other nodes
        parser.add_argument(part, action="store_true", help=argparse.SUPPRESS)
    return command.main(parser, _examine, arguments)


def _examine(given: argparse.Namespace) -> None:
    if given.node:
        from trainer.cluster.agent import serve

        serve(sys.stdin, sys.stdout)
    elif given.ring:
        from trainer.cluster.mpi_ring import ring_rank

        ring_rank()
    else:
        from trainer.cluster.doctor import PlannedRun
        from trainer.cluster.doctor_view import show_examination

        planned = PlannedRun(given.recipe, given.overrides, given.master_port)
        show_examination(planned, given.hostfile)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
