"""Sends what a run logs to its trackers; one that fails neither ends the run nor slows it down."""

import time
from collections import deque
from collections.abc import Callable, Mapping

from data.text import terminal
from trainer.errors import MachineError
from trainer.run_folder.trackers import TRACKERS, TrackedRun, Tracker, without_secrets

_RETRY_SECONDS = 60.0
_MOST_TRIES = 3  # of one entry
_MOST_WAITING = 10_000  # entries

Entry = Callable[[Tracker], None]


def text_entry(name: str, page: str, step: int) -> Entry:
    """A page as an entry."""
    return lambda to: to.text(name, page, step)


class Tracking:
    """One tracker of a run. An entry that it does not take waits, and so do those after it.

    Args:
        name: A key of TRACKERS.
        has_last: The last step of each kind that the log of an earlier start has: these entries
            were sent, and a tracker that does not forget gets none of them again.

    Raises:
        MachineError: A new run cannot begin in it.
    """

    def __init__(self, name: str, run: TrackedRun, has_last: Mapping[str, int]) -> None:
        self.name, self._run = name, run
        self._has_last = {} if TRACKERS[name].forgets else has_last
        self._tracker: Tracker | None = None
        self._waiting: deque[Entry] = deque(maxlen=_MOST_WAITING)
        self._tries, self._next_try, self._has_said = 0, 0.0, False
        try:
            self._tracker = TRACKERS[name](run)
        except Exception as error:
            if not run.first_step:
                raise MachineError(
                    f"log.trackers: {name} cannot begin: {_shown(error)}; nothing was trained:"
                    " mend it, or leave it out"
                ) from error
            self._say(error)

    @property
    def where(self) -> str:
        """Where its run is, for people."""
        return self._tracker.where if self._tracker else ""

    def send(self, kind: str, step: int, entry: Entry) -> None:
        """Send an entry of a kind, e.g. "train", unless it was sent before."""
        if step > self._has_last.get(kind, -1):
            self._waiting.append(entry)
            if time.monotonic() >= self._next_try:
                self._flush()

    def close(self, *, has_finished: bool) -> None:
        """Send what waits, as far as the tracker takes it, and whether the run has its report."""
        self._waiting.append(lambda to: to.close(has_finished=has_finished))
        self._flush()
        if num := len(self._waiting):
            terminal.say(
                f"{self.name} lacks the last {num:,} entries of this run; log.jsonl has all"
            )

    def _flush(self) -> None:
        while self._waiting:
            try:
                if self._tracker is None:
                    self._tracker = TRACKERS[self.name](self._run)
                self._waiting[0](self._tracker)
            except Exception as error:
                self._say(error)
                self._tries += 1
                self._next_try = time.monotonic() + _RETRY_SECONDS
                if self._tries < _MOST_TRIES:
                    return
            self._waiting.popleft()
            self._tries = 0

    def _say(self, error: Exception) -> None:
        if not self._has_said:
            terminal.say(
                f"{self.name} fails: {_shown(error)}; the run goes on, tries again every"
                f" {_RETRY_SECONDS:.0f} s and does not say so again"
            )
        self._has_said = True


def _shown(error: Exception) -> str:
    text = without_secrets(f"{type(error).__name__}: {error}".split("\n")[0])
    return text if len(text) <= 300 else f"{text[:300]} ..."
