"""A chat template comes with a model folder from anywhere: it runs in bounded time and memory.

transformers' sandbox keeps a template from the program's objects; it lets one loop for hours and
fill the memory. What a template writes within the bounds is what it writes in transformers.
"""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import TokenizerError

if TYPE_CHECKING:
    from jinja2 import Template

MOST_SECONDS = 20.0  # of the processor, for one conversation; templates take milliseconds
MOST_BYTES = 1 << 30  # more than there were before it
_MOST_BITS = 4096  # of a power: one operation, which no signal interrupts


class TemplateRunsAwayError(TokenizerError):
    """A chat template that takes too long or makes too much."""


@contextmanager
def bounded() -> Iterator[None]:
    """The bounds of one compilation, which computes constants, or rendering, in the main thread.

    Raises:
        TemplateRunsAwayError: It reached one.
    """
    reached = []

    def late(*_: object) -> None:
        reached.append(f"runs for more than {MOST_SECONDS:g} seconds")
        raise TimeoutError

    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    soft, hard = limits = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST_BYTES
    known = [limit for limit in (soft, hard, most) if limit != resource.RLIM_INFINITY]
    before = signal.signal(signal.SIGVTALRM, late)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
        yield
    except Exception as error:  # jinja may turn one into another
        if isinstance(error, MemoryError):
            reached.append(f"takes more than {MOST_BYTES >> 20:,} MiB")
        if reached:
            raise TemplateRunsAwayError(f"the chat template {reached[0]}") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGVTALRM, before)


@lru_cache(maxsize=4)
def compiled(template: str) -> "Template":
    """A template in transformers' sandbox, whose powers are bounded, too.

    Raises:
        Exception: Any, where it cannot be compiled.
    """
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    sandbox: Any = _cached_compile_jinja_template("").environment
    sandbox.intercepted_binops = frozenset(["**"])
    sandbox.binop_table = {**sandbox.binop_table, "**": _power}
    made: Template = sandbox.from_string(template)
    return made


def _power(base: Any, exponent: Any) -> Any:
    are_whole = isinstance(base, int) and isinstance(exponent, int)
    if are_whole and abs(exponent) * base.bit_length() > _MOST_BITS:
        raise TemplateRunsAwayError(f"the chat template makes {base} ** {exponent}")
    return base**exponent
