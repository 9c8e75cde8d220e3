"""Talk to a trained language model: launcher/chat.py MODEL [--system TEXT] [--base FOLDER].

MODEL is a finished run, its model/, or a copy of that. A question is a line, or several between
lines of three quotes; from a pipe each line is one. /exit or Ctrl-D leaves, /new begins again,
Ctrl-C stops an answer.
"""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is launcher/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launcher import command


def main(arguments: list[str]) -> int:
    """Answer until the input ends; return the exit code."""
    parser = command.command_parser(__doc__)
    command.add_model(parser)
    parser.add_argument("--system", default="", help="text before every conversation")
    parser.add_argument("--tokens", type=int, default=512, help="most tokens of an answer")
    parser.add_argument(
        "--temperature", type=float, default=0.0,
        help="0 takes the most likely token (default); else one is drawn, by --seed",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    command.add_engine(parser)
    return command.main(parser, _chat, arguments)


def _chat(given: Namespace) -> int:
    from trainer.run.chatting import chat_with

    sampling = (given.tokens, given.temperature, given.seed)
    return chat_with(given.model, given.base, given.system, *sampling, engine=given.engine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
