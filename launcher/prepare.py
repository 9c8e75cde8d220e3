"""Prepare a recipe's data before the GPU time starts: launcher/prepare.py RECIPE [KEY=VALUE ...].

Reads, checks, tokenises and packs on the CPU, keeps the result for training, and prints counts of
records, tokens, rows and steps. --show N prints the first N examples as the model reads them, with
their targets in colour, or in brackets where there is none. --json prints the facts of data.json
instead, for programs. --audit looks for near duplicates, contradictory labels and words that
give the label away, and writes its findings beside the run folder, as OUTPUT_DIR.audit.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Prepare the data of the recipe; return the exit code."""
    parser = command.recipe_parser(__doc__)
    parser.add_argument("--audit", action="store_true", help="look deeper; seconds to minutes")
    parser.add_argument("--json", action="store_true", help="print facts as JSON, nothing else")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N examples")
    return command.main(parser, _prepare, arguments)


def _prepare(given: Namespace) -> None:
    from trainer.config.recipe import load_run_config
    from trainer.run.preparation import audit_run, prepare_run, print_lines

    config = load_run_config(given.recipe, given.overrides)
    if given.audit:  # first: it also shows what training refuses
        lines = audit_run(config)
        print_lines([] if given.json else lines)
    prepared = prepare_run(config)
    if given.json:
        print(json.dumps(prepared.facts, indent=2, sort_keys=True))
        return

    from trainer.run.data_report import print_prepared

    print_prepared(config, prepared, given.show)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
