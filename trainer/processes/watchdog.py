"""Ends a process that makes no progress, with the stack of every thread and exit code 6.

A rank that hangs holds up all others: a collective waits for engine.timeout_seconds, by default
half an hour. The watchdog learns from the run itself how long a step may take.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 5.0  # times the longest of the last steps
SHORTEST = 60.0  # seconds; a file server or another job can delay any step for a while
WARM_UP = 3  # of each kind; kernels compile and memory grows in the first
_REMEMBERED = 50
_TICK = 0.5  # seconds
_LATE = 4 * _TICK  # a tick that comes later: this process was suspended, or its machine

Expired = Callable[[str], None]


class Watchdog:
    """Watches this process from a thread of its own.

    Args:
        longest: Seconds that any action may take, also while no times are known.
        warm_up: Steps before times are used: a step that logs waits for the steps before it.
        expired: Called on the watching thread with a sentence; must end the process.
        shortest: Seconds that every action may take at least.
    """

    def __init__(
        self, longest: float, warm_up: int, expired: Expired, *, shortest: float = SHORTEST
    ) -> None:
        self._longest = longest
        self._shortest = min(shortest, longest)
        self._warm_up = max(warm_up, WARM_UP)
        self._expired = expired
        self._seconds: defaultdict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=max(_REMEMBERED, self._warm_up))
        )
        self._suspended = 0.0  # seconds in which nothing here ran
        self._watched: tuple[str, float, float] | None = None  # what, start, seconds allowed
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(self, kind: str, number: int) -> Iterator[None]:
        """Expect the body to end within the time that its kind has taken so far."""
        started = self._now()
        self._watched = f"{kind} {number}", started, self.allowed(kind)
        try:
            yield
        finally:
            self._watched = None
        self._seconds[kind].append(self._now() - started)

    def allowed(self, kind: str) -> float:
        """Seconds that the next action of a kind may take."""
        known = self._seconds[kind]
        is_step = kind == "step"
        if len(known) < (self._warm_up if is_step else 1):
            return self._longest
        return min(self._longest, max(self._shortest, PATIENCE * max(known)))

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _now(self) -> float:
        """Seconds in which this process could run, without Ctrl-Z and a scheduler's pause."""
        return time.monotonic() - self._suspended

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(_TICK):
            tick, last = time.monotonic() - last, time.monotonic()
            if tick > _LATE:
                self._suspended += tick - _TICK
            watched = self._watched
            if watched is None or self._now() - watched[1] < watched[2]:
                continue
            what, started, allowed = watched
            taken = self._now() - started
            self._expired(
                f"{what} has not ended after {taken:.0f} s ({allowed:.0f} s were allowed)"
            )
            return
