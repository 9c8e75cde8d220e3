"""Measure a model on published suites of tasks: launcher/suite.py MODEL NAME ...

NAME is a suite of docs/suites.md, which says where its data come from; --data is the folder that
they are in. With --generations FILE there is no MODEL: the outputs in the file are scored.
Programs run in a bubblewrap sandbox, or not at all.
"""

import argparse
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Write suite.json, suite.md and items.jsonl of each suite; return the exit code."""
    parser = command.command_parser(__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="MODEL | NAME", help="model, then suites; or suites alone"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("suites"), metavar="FOLDER",
        help="the suites' data, found by their columns, or one file; default: suites/",
    )  # fmt: skip
    parser.add_argument(
        "--generations", type=Path, metavar="FILE", help="score these outputs; needs no model"
    )
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="base of the model, where it has moved"
    )
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N",
        help="texts that are written together; more need more memory; default: 8",
    )  # fmt: skip
    command.add_engine(parser)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="folder for NAME/; default: MODEL/suites, or FILE.suites",
    )  # fmt: skip
    return command.main(parser, _measure, arguments)


def _measure(given: Namespace) -> None:
    from trainer.errors import ConfigError
    from trainer.evaluation.suites.running import checked_names, score_given

    if given.limit is not None and given.limit < 1:
        raise ConfigError(f"--limit {given.limit}: must be at least 1")
    if not given.generations:
        from trainer.run.suite import measure_model

        model, *words = given.words
        measure_model(
            Path(model), checked_names(words), given.data, given.output,
            limit=given.limit, base=given.base, batch=given.batch, engine=given.engine,
        )  # fmt: skip
        return
    names = checked_names(given.words)
    if len(names) > 1:
        raise ConfigError(f"--generations belongs to one suite, found {', '.join(names)}")
    output = given.output or Path(f"{given.generations}.suites")
    for name in names:
        score_given(name, given.data, given.generations, output / name, given.limit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
