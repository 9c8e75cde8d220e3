"""Export a trained model for other tools: launcher/export.py MODEL OUT [--merge].

MODEL is a finished run, its model/, or a copy of that. OUT is a new folder: the adapter as PEFT
reads it or, with --merge, one model as transformers reads it, with a tokenizer that puts the tokens
around a function itself, and a card. Before it is written, stock libraries in a fresh process score
real rows; the largest difference from the model's own scores is printed, and above rounding nothing
is written (code 4). docs/serve.md says what other tools do with the folder.
"""

import argparse
import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Write the folder; return the exit code."""
    parser = command.command_parser(__doc__)
    command.add_model(parser)
    parser.add_argument(
        "output", nargs="?", metavar="OUT", help="new folder; default of a merge: MODEL/merged"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE",
        help="how the rows of --data are read, e.g. data.fields={code: NAME, target: NAME}",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, dest="output_option", help=argparse.SUPPRESS)
    parser.add_argument("--merge", action="store_true", help="adapter and base as one model")
    parser.add_argument(
        "--onto",
        choices=("dequantized", "full"),
        default="dequantized",
        help="the decoded weights that QLoRA trained with (default), or the unquantised base",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights of one model; default: as they were trained",
    )
    parser.add_argument(
        "--format", choices=("transformers", "onnx"), default="transformers",
        help="onnx: with an ONNX file beside the weights, of an encoder that classifies",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="FILE",
        help="rows to score; default: the validation split, or embedded functions without it",
    )  # fmt: skip
    return command.main(parser, _export, arguments)


def _export(given: Namespace) -> None:
    from trainer.errors import ConfigError
    from trainer.run.commands import export_trained

    words = [given.output, *given.overrides] if given.output else given.overrides
    keys = [word for word in words if command.is_key(word)]
    folders = [Path(word) for word in words if not command.is_key(word)]
    if given.output_option:
        folders.append(given.output_option)
    if not folders and given.merge:
        folders = [given.model / "merged"]
    if len(folders) != 1:
        raise ConfigError("give one new folder: launcher/export.py MODEL OUT [--merge]")
    export_trained(
        given.model, folders[0], merge=given.merge, onto=given.onto, dtype=given.dtype,
        is_onnx=given.format == "onnx", base=given.base, rows=given.data, overrides=keys,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
