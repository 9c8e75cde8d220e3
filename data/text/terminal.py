"""What a command says on stderr while it works: lines, and a bar for each step under way.

A terminal shows how much of a step is done and how long the rest takes; the bar vanishes at its
end. A pipe or a file gets a plain line of a long step now and then. Only rank 0 says anything, and
not with --quiet.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from data.text.escaping import print_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

QUIET = "FOCALTUNE_QUIET"  # environment of a command with --quiet, and of the processes it starts
T = TypeVar("T")

_PLAIN_SECONDS = 30.0  # between two lines of a step in a pipe
_DRAWN_SECONDS = 0.1  # between two states of a bar: a step can be of millions of records
_BAR_WIDTH = 16
_live: "list[Progress]" = []  # the one that draws the bars of this process


def is_silent() -> bool:
    """Whether this process says nothing but errors and results."""
    return os.environ.get(QUIET) == "1" or os.environ.get("RANK", "0") != "0"


def console() -> "Console":
    """Where lines for people go; they stay above the bars."""
    from rich.console import Console

    return _live[0].console if _live else Console(stderr=True, quiet=is_silent())


def say(*lines: str) -> None:
    """Print lines for people."""
    print_text(console(), lines)


def is_live() -> bool:
    """Whether bars are drawn: on a terminal, whatever FORCE_COLOR says."""
    return sys.stderr.isatty() and console().is_interactive and not is_silent()


def show_cursor() -> None:
    """Give the terminal its cursor back where the process ends in the middle of a step."""
    if _live and sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")


class Step:
    """A step under way; `close` ends it.

    Args:
        what: For people, e.g. "scoring test".
        total: Of what is counted; None where nobody knows.
    """

    def __init__(self, what: str, total: float | None = None, done: float = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self._started = self._said = self._drawn = time.monotonic()
        self._first, self._note = done, ""
        self._task: TaskID | None = None
        if is_live():
            bars, completed = _bars(), int(done)
            self._task = bars.add_task(what, total=total, completed=completed, first=done, note="")

    def advance(self, more: float = 1) -> None:
        """So much more is done."""
        self.at(self.done + more)

    def at(self, done: float, note: str = "") -> None:
        """So much is done now; a note stands behind the bar until the next one."""
        self.done, now = done, time.monotonic()
        if self._task is not None and (note or now - self._drawn >= _DRAWN_SECONDS):
            self._drawn, self._note = now, note or self._note
            _live[0].update(self._task, completed=done, note=self._note)
        elif self._task is None and now - self._said >= _PLAIN_SECONDS:
            self._said = now
            say(self._plain())

    def close(self) -> None:
        """Take the bar away."""
        if self._task is None:
            return
        _live[0].remove_task(self._task)
        self._task = None
        if not _live[0].tasks:
            _live.pop().stop()

    def _plain(self) -> str:
        counts = f"{self.done:,.0f}"
        if not self.total:
            return f"{self.what}: {counts}"
        seconds, new = time.monotonic() - self._started, self.done - self._first
        left = _left(seconds, new, self.total - self.done)
        return f"{self.what}: {counts} of {self.total:,.0f}{left and f', {left}'}"


@contextmanager
def step(what: str, total: float | None = None) -> Iterator[Step]:
    """A step under way while the block runs."""
    shown = Step(what, total)
    try:
        yield shown
    finally:
        shown.close()


def tracked(
    items: Iterable[T], what: str, total: float | None, size: Callable[[T], float] = lambda _: 1
) -> Iterator[T]:
    """The items, as a step; `size` says how much of the total one is."""
    with step(what, total) as shown:
        for item in items:
            yield item
            shown.advance(size(item))


def _bars() -> "Progress":
    """The bars of this process."""
    if not _live:
        _live.append(_drawn(console()))
        _live[0].start()
    return _live[0]


def _drawn(on: "Console") -> "Progress":
    from rich.console import RenderableType
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Counts(ProgressColumn):
        def render(self, task: Task) -> Text:
            done = f"{task.completed:,.0f}"
            if task.total:
                done = f"{done}/{task.total:,.0f}"
            return Text(done if task.total or task.completed else "", style="progress.download")

    class Times(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            seconds, new = task.elapsed or 0, task.completed - task.fields["first"]
            left = "" if not task.total else _left(seconds, new, task.total - task.completed)
            return Text(f"{_clock(seconds)}{left and f', {left}'}", style="progress.elapsed")

    class Note(ProgressColumn):
        def render(self, task: Task) -> Text:  # cut off where the terminal is narrow
            return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

    class Bars(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table([t for t in self.tasks if (t.elapsed or 0) > 0.3])

    whole = Column(no_wrap=True)
    return Bars(
        TextColumn("{task.description}", style="bold", markup=False), BarColumn(_BAR_WIDTH),
        Counts(whole), Times(whole), Note(),
        console=on, transient=True, redirect_stdout=sys.stdout.isatty(),
    )  # fmt: skip


def _left(seconds: float, new: float, rest: float) -> str:
    """How long the rest takes at the speed so far; empty before anything is done."""
    return f"{_clock(seconds / new * max(0, rest))} left" if new > 0 else ""


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
