"""Merge a finished run's adapter into its base: launcher/export.py RUN --merge [KEY=PATH].

Writes a plain transformers folder (RUN/merged) and prints how far its logits differ from those of
the trained model on the validation split, or on any data.valid=FILE. A base that has moved since
the run is given again: model.path=FOLDER.
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
    parser.add_argument("run", type=Path, help="run folder of launcher/train.py")
    command.add_moved_paths(parser)
    parser.add_argument("--merge", action="store_true", required=True, help="what to do")
    parser.add_argument(
        "--onto",
        choices=("dequantized", "full"),
        default="dequantized",
        help="the decoded weights that QLoRA trained with (default), or the unquantised base",
    )
    parser.add_argument("--output", type=Path, help="new folder; default: RUN/merged")
    return command.main(parser, _merge, arguments)


def _merge(given: Namespace) -> None:
    from trainer.run.commands import merge_run

    output = given.output or given.run / "merged"
    merge_run(given.run, output, given.onto, given.overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
