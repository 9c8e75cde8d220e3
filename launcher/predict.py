"""Score the functions of a source tree: launcher/predict.py MODEL PATH ...

MODEL is a finished run that learned functions, its model/, or a copy of that. PATH is a file or a
folder: Java, C, C++, Python, JavaScript, TypeScript, Go, PHP, C#, Rust and Ruby are found by the
endings of files. The report has every function, the most probable one first. Started by deepspeed,
every rank scores a share.
"""

import argparse
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command

_FORMATS = ("text", "json", "jsonl", "csv", "sarif", "html")


def main(arguments: list[str]) -> int:
    """Write the report; return the exit code."""
    parser = command.command_parser(__doc__)
    command.add_model(parser)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file or folder")
    parser.add_argument("--format", choices=_FORMATS, default="text", help="default: text")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="of the report; default: standard output"
    )
    parser.add_argument(
        "--top", type=int, metavar="N",
        help="functions that are listed at most; default: 20 as text, 500 as html, else all",
    )  # fmt: skip
    parser.add_argument(
        "--fail-above", type=float, metavar="P",
        help="exit with 1 where a function has a higher probability than P",
    )  # fmt: skip
    parser.add_argument(
        "--changed-since", metavar="REV",
        help="only functions that changed since the work tree left this commit or branch",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", type=Path, metavar="SARIF",
        help="an earlier file of predict: what it has is left out",
    )  # fmt: skip
    parser.add_argument(
        "--findings", type=Path, metavar="SARIF",
        help="file of another analyser: only functions with its findings are scored; with"
        " --format sarif that file is written, the probability as rank of each finding",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="vendored and generated files, too")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return command.main(parser, _predict, arguments)


def _predict(given: Namespace) -> int:
    from trainer.prediction.predict import Wanted, predict

    wanted = Wanted(
        paths=given.paths,
        every=given.all,
        format=given.format,
        output=given.output,
        top=given.top,
        fail_above=given.fail_above,
        changed_since=given.changed_since,
        baseline=given.baseline,
        findings=given.findings,
    )
    return predict(given.model, wanted, command.version(), given.base)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
