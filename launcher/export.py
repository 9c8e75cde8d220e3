"""Merge a trained model's adapter into its base: launcher/export.py MODEL --merge [KEY=PATH].

MODEL is a finished run, its model/, or a copy of that. Writes a plain transformers folder
(MODEL/merged) and prints how far its logits differ from those of the trained model on the
validation split, or on any data.valid=FILE. A base that has moved is given again: --base FOLDER.
"""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Write the merged model; return the exit code."""
    parser = command.command_parser(__doc__)
    command.add_model(parser)
    parser.add_argument(
        "overrides", nargs="*", default=[],
        help="where the training data are now, e.g. data.path=FOLDER data.valid=FILE",
    )  # fmt: skip
    parser.add_argument("--merge", action="store_true", required=True, help="what to do")
    parser.add_argument(
        "--onto",
        choices=("dequantized", "full"),
        default="dequantized",
        help="the decoded weights that QLoRA trained with (default), or the unquantised base",
    )
    parser.add_argument("--output", type=Path, help="new folder; default: MODEL/merged")
    return command.main(parser, _merge, arguments)


def _merge(given: Namespace) -> None:
    from trainer.run.commands import merge_model

    output = given.output or given.model / "merged"
    merge_model(given.model, output, given.onto, given.overrides, given.base)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
