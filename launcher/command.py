"""What the entry points share: the recipe arguments, the environment, the exit codes."""

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from trainer.processes.distributed import end_now, is_member
from trainer.processes.outcome import write_outcome

DEFECT = 1
MACHINE = 5
INTERRUPTED = 130  # a shell's 128 + SIGINT
STOPPED = 75  # BSD's EX_TEMPFAIL: the same command continues


class _KeysOnHelp(argparse.Action):
    """--help with every key of a recipe, read only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print and exit."""
        from trainer.config.recipe import describe_keys

        print(parser.format_help())
        print(f"keys of a recipe, with their defaults:\n{describe_keys()}")
        parser.exit()


def recipe_parser(description: str) -> argparse.ArgumentParser:
    """RECIPE [section.key=value ...], and the rank argument launchers pass."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("recipe", type=Path, help="a YAML file, e.g. recipes/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="section.key=value, e.g. optim.lr=1e-4"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action=_KeysOnHelp, nargs=0, help="this text")
    return parser


def run_command(action: Callable[[], None]) -> int:
    """Run an entry point and turn our errors into one message and an exit code.

    Codes: 0 done, 2 recipe, 3 data, 4 model or checkpoint, 5 machine, 6 diverged or hung, 75
    stopped and saved. Anything else is a defect and keeps its traceback. A rank that fails ends
    here: one that stayed to leave its group in good order would hold the others up.
    """
    _offline_and_quiet()
    before = signal.signal(signal.SIGINT, _interrupted)
    try:
        return _run(action)
    finally:
        signal.signal(signal.SIGINT, before)


def _run(action: Callable[[], None]) -> int:
    try:
        action()
    except OSError as error:
        _say(ValueError(error), MACHINE)
        return _end(MACHINE, error)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if isinstance(error, ValueError) and code is not None:
            _say(error, int(code))
            return _end(int(code), error)
        if is_member():
            traceback.print_exc()
            _end(DEFECT, error)
        raise
    write_outcome(0)
    return 0


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End at once; a run takes the first Ctrl-C as a request to save, once it trains.

    An exception would be lost where it lands in a destructor, as imports run some.
    """
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a bar hides
    told = "stopped, nothing saved; the same command starts again or continues"
    os.write(2, f"{shown}{told}\n".encode())
    write_outcome(INTERRUPTED, "KeyboardInterrupt", told)
    os._exit(INTERRUPTED)


def _end(code: int, error: BaseException) -> int:
    """Leave the outcome; one rank of many then ends on the spot."""
    write_outcome(code, type(error).__name__, str(error))
    if is_member():
        end_now(code)
    return code


def _say(error: ValueError, code: int) -> None:
    """One line in one write, as ranks share a terminal; a stop is told by rank 0 alone."""
    rank = int(os.environ.get("RANK", "0"))
    if code == STOPPED and rank:
        return
    where = f"[rank {rank}] " if rank else ""
    kind = "" if code == STOPPED else "error: "
    sys.stderr.write(f"{where}{kind}{error}\n")
    sys.stderr.flush()


def _offline_and_quiet() -> None:
    """No network, no telemetry, no chatter of libraries; what the user set stays."""
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "DS_LOG_LEVEL": "error",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # bitsandbytes offers a kernel for 4-bit CPU inference that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
