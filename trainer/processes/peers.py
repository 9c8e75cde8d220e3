"""Errors for ranks that no longer answer; they name the host, as far as this one can see."""

import faulthandler
import socket
import sys
from collections.abc import Iterable

import torch

from trainer.errors import HungError, LostRankError
from trainer.processes.distributed import Ranks, end_now
from trainer.processes.network import at_once
from trainer.processes.outcome import write_outcome

_PROBE_PORT = 22  # ssh: an answer of any kind, a refusal too, shows that the host is up
_PROBE_SECONDS = 3.0
_LAST_SECONDS = 20.0
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
_LATE = ("Timed out waiting", "timed out", "Timeout", "timeout")


def is_of_collective(error: BaseException) -> bool:
    """Whether a collective failed: gloo raises a plain RuntimeError that names its source file."""
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def connection_error(error: RuntimeError, ranks: Ranks) -> LostRankError | HungError | None:
    """The error behind a collective's failure; None where no collective failed."""
    text = str(error)
    if not is_of_collective(error):
        return None
    where = f"{describe(ranks)}; {_suspects(ranks)}"
    if any(words in text for words in _LATE) and not any(words in text for words in _LOST):
        return HungError(
            f"other ranks did not answer within engine.timeout_seconds: {where}. See their"
            f" own messages above; the same command continues. torch says: {_first_line(text)}"
        )
    return LostRankError(
        f"the connection to another rank broke: {where}. See its own message above, if it could"
        f" write one; the same command continues. torch says: {_first_line(text)}"
    )


def end_hung(what: str, ranks: Ranks) -> None:
    """End this process with the stack of every thread and code 6; called by the watchdog."""
    faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True)  # should a file system hang, too
    error = HungError(f"{what}: {describe(ranks)}; {_suspects(ranks)}")
    sys.stderr.write(f"error: {error}. The stack of every thread:\n")
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)
    write_outcome(error.exit_code, type(error).__name__, str(error))
    end_now(error.exit_code)


def describe(ranks: Ranks) -> str:
    """Which rank this is, and where."""
    return f"rank {ranks.rank} of {ranks.world_size} on {socket.gethostname()}"


def silent_hosts(names: Iterable[str], seconds: float = _PROBE_SECONDS) -> list[str]:
    """The hosts that do not answer at all; all are probed at once."""
    answers = at_once(lambda name: _answers(name, seconds), sorted(set(names)))
    return [name for name, is_up in answers.items() if not is_up]


def _answers(name: str, seconds: float) -> bool:
    try:
        socket.create_connection((name, _PROBE_PORT), seconds).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def _suspects(ranks: Ranks) -> str:
    others = set(ranks.hosts) - {socket.gethostname()}
    if not others:
        return "all ranks are on this host"
    if silent := silent_hosts(others):
        return f"{', '.join(silent)} does not answer: the host is down or the link to it is cut"
    return f"{', '.join(sorted(others))} answers, so a rank ended there or here"


def _first_line(text: str) -> str:
    """The first line, without gloo's guess at the reason."""
    return text.strip().partition("\n")[0].partition(". This is typically")[0][:300]
