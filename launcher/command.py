"""Shared by the entry points: arguments, --help and --version, environment, exit codes."""

import argparse
import errno
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from data.text.escaping import broken, escaped, styled
from data.text.terminal import QUIET
from trainer.errors import INTERRUPTED, MachineError, StoppedError
from trainer.processes.distributed import end_now, is_member
from trainer.processes.outcome import own_rank, write_outcome

ROOT = Path(__file__).resolve().parents[1]
DEFECT = 1
_LONGEST_MESSAGE = 3500  # characters


class _Print(argparse.Action):
    """Prints the text that `const` makes of the parser, only when it is needed, and exits."""

    def __call__(self, parser: ArgumentParser, *_: object) -> None:
        """Print and exit."""
        print(self.const(parser).rstrip())
        parser.exit()


def version(root: Path = ROOT) -> str:
    """Version in setup.cfg and, in a git checkout, its commit."""
    from trainer.cluster.facts import revision

    found = revision(root)
    if "commit" not in found:
        return str(found["version"])
    return f"{found['version']} (git {found['commit']}{'-dirty' if found['is_changed'] else ''})"


class _Help(argparse.HelpFormatter):
    """Fills paragraphs of a description to the width of the terminal; examples stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip().split("\n\n")
        filled = [p if p[0].isspace() else textwrap.fill(p, width) for p in parts]
        return "\n\n".join(filled)


class _Parser(ArgumentParser):
    """Writes arguments that it does not take so that they cannot drive the terminal."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(escaped(message), file)


def command_parser(
    description: str | None,
    help_text: Callable[[ArgumentParser], str] = ArgumentParser.format_help,
) -> ArgumentParser:
    """A parser with --help, --version and --quiet."""
    parser = _Parser(description=description, formatter_class=_Help, add_help=False)
    options: dict[str, Any] = {"action": _Print, "nargs": 0}
    parser.add_argument("-h", "--help", const=help_text, help="print this text", **options)
    parser.add_argument(
        "--version", const=lambda _: f"focaltune {version()}", help="print the version", **options
    )
    parser.add_argument("--quiet", action="store_true", help="print only results and errors")
    return parser


def recipe_parser(description: str | None) -> ArgumentParser:
    """RECIPE [section.key=value ...], and the rank argument that launchers pass."""
    parser = command_parser(description, _help_with_keys)
    parser.add_argument("recipe", type=Path, help="a YAML file, e.g. recipes/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="section.key=value, e.g. optim.lr=1e-4"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def add_model(parser: ArgumentParser) -> None:
    """MODEL and --base, for commands on a trained model."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="finished run, its model/, or a copy of that"
    )
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="base of the model, where it has moved"
    )


def add_engine(parser: ArgumentParser) -> None:
    """--engine, for commands that write texts."""
    parser.add_argument(
        "--engine", choices=("auto", "own", "vllm"), default="auto",
        help="what writes; auto: vLLM where it is installed, sees a GPU and can, else own",
    )  # fmt: skip


def is_key(word: str) -> bool:
    """Whether an argument is section.key=value, not a path."""
    return re.match(r"[a-z_]+(\.\w+)+=", word) is not None


def _help_with_keys(parser: ArgumentParser) -> str:
    from trainer.config.keys import describe_keys

    text = f"\nkeys of a recipe, with their defaults:\n{describe_keys()}"
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(broken(line, width, indent=6) for line in text.split("\n"))
    return f"{parser.format_help()}{text}"


def main(
    parser: ArgumentParser, action: Callable[[Namespace], int | None], arguments: list[str]
) -> int:
    """Parse, run the action, return the exit code. Options may come between RECIPE and its keys."""
    _in_utf8()
    # Intermixed parsing would take apart what follows "--", the command that supervise.py starts.
    parse = parser.parse_args if "--" in arguments else parser.parse_intermixed_args
    given = parse(arguments)
    if given.quiet:
        os.environ[QUIET] = "1"
    return run_command(lambda: action(given))


def run_command(action: Callable[[], int | None]) -> int:
    """Run an entry point and turn our errors into one message and an exit code.

    Codes: 0 done, 2 recipe, 3 data, 4 model or checkpoint, 5 machine, 6 diverged or hung, 7 no
    sandbox, 75 stopped and saved, or what the action returns. Any other exception is a defect and
    keeps its traceback. A rank that fails ends here: leaving its group in good order would hold the
    others.
    """
    _offline_and_quiet()
    before = signal.signal(signal.SIGINT, _interrupted)
    threading.excepthook = _ended_thread
    try:
        with _lasting_output():
            return _run(action)
    finally:
        signal.signal(signal.SIGINT, before)


def _run(action: Callable[[], int | None]) -> int:
    try:
        code = action() or 0
    except OSError as error:
        return _end(MachineError.exit_code, error)
    except Exception as error:
        known = getattr(error, "exit_code", None)
        if isinstance(error, ValueError) and known is not None:
            return _end(int(known), error)
        if is_member():
            traceback.print_exc()
            _leave(DEFECT, error)
        raise
    write_outcome(code)
    return code


def _ended_thread(failed: threading.ExceptHookArgs) -> None:
    """Show a full disk in a thread of a library as one line: the next line of the log ends the run.

    Any other exception is a defect and keeps its traceback.
    """
    if isinstance(failed.exc_value, OSError):
        print(f"error: {failed.exc_value}", file=sys.stderr, flush=True)
    else:
        threading.__excepthook__(failed)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End at once; a run takes the first Ctrl-C as a request to save, once it trains.

    An exception raised here could land in a destructor, which imports run, and be lost.
    """
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a bar hides
    message = "stopped, nothing saved; the same command starts again or continues"
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"{shown}{message}\n".encode())
    write_outcome(INTERRUPTED, "KeyboardInterrupt", message)
    os._exit(INTERRUPTED)


class _LastingStream:
    """A stream that survives the end of its reader: a closed terminal, `| head`, a killed tee.

    The program finishes, or saves and stops; it does not die of a line that nobody reads. No text
    of the user's, of a defect's traceback neither, can name a window or write to a clipboard.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.is_read = stream, True

    def write(self, text: str) -> int:
        """Write, as long as somebody reads."""
        self._unless_gone(lambda: self.stream.write(styled(text)))
        return len(text)

    def flush(self) -> None:
        """Flush, as long as somebody reads."""
        self._unless_gone(self.stream.flush)

    def _unless_gone(self, action: Callable[[], object]) -> None:
        try:
            if self.is_read:
                action()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.is_read = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def _lasting_output() -> Iterator[None]:
    streams = {name: _LastingStream(getattr(sys, name)) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in streams.items():
            stream.flush()
            setattr(sys, name, stream.stream)
            if not stream.is_read:  # what is left in its buffer would change the exit code
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _in_utf8() -> None:
    """Start again in UTF-8 mode where the locale has paths and output in another encoding."""
    if sys.getfilesystemencoding() != "utf-8":
        arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONUTF8": "1"})


def _end(code: int, error: Exception) -> int:
    """Say it in one write, because ranks share a terminal; only rank 0 reports a stop."""
    rank = own_rank()
    is_stop = code == StoppedError.exit_code
    if not (is_stop and rank):
        where = f"[rank {rank}] " if rank else ""
        sys.stderr.write(
            escaped(f"{where}{'' if is_stop else 'error: '}{_shortened(str(error))}\n")
        )
        sys.stderr.flush()
    return _leave(code, error)


def _shortened(message: str) -> str:
    """A message that fits a screen, with its beginning and its remedy at the end."""
    left = len(message) - _LONGEST_MESSAGE
    half = _LONGEST_MESSAGE // 2
    return message if left <= 0 else f"{message[:half]} ... {left} more ... {message[-half:]}"


def _leave(code: int, error: Exception) -> int:
    """Write the outcome; one rank of many then ends at once."""
    write_outcome(code, type(error).__name__, str(error))
    if is_member():
        end_now(code)
    return code


def _offline_and_quiet() -> None:
    """No network, telemetry, messages, long spinning or split memory, unless the user set it."""
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "USE_HUB_KERNELS": "NO",  # transformers would load code from a hub in place of layers
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "DS_LOG_LEVEL": "error",
        "TORCHDYNAMO_DISABLE": "1",  # ZeRO would import the compiler, for Muon
    }
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when torch loads. Threads that spin long starve each other on a busy machine, those
        # that sleep at once wake too late for the small steps of a tiny model.
        defaults["GOMP_SPINCOUNT"] = "3000"
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same
        # Rows of many widths would leave a GPU's memory in pieces that no other width fits.
        defaults["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # bitsandbytes offers a kernel for 4-bit CPU inference that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
