"""What a suite is: its items, what a model is asked, how outputs are judged, what is counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.evaluation.suites.asking import Asking

Verdict = Literal["pass", "fail", "timeout", "error", "not measured", "invalid"]
"""error: the machine's fault, never the output's; not measured: a compiler is missing; invalid: an
answer that is neither yes nor no, which counts as wrong."""


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        id: Unique in its suite.
        row: The row of the data file.
        place: Its number among the rows of the file; released outputs stand in this order.
        is_extra: Released outputs may lack it.
    """

    id: str
    row: Mapping[str, Any]
    place: int
    is_extra: bool = False


@dataclass(frozen=True)
class Judged:
    """What became of one output.

    Attributes:
        seconds: Wall clock of its program.
        detail: The answer that was read, or why a program did not pass; it may quote the output.
    """

    verdict: Verdict
    seconds: float = 0.0
    detail: str = ""


Result = tuple[Item, Sequence[Judged]]
"""An item and what became of each of its outputs."""


@dataclass(frozen=True)
class Suite:
    """One task of a model, an entry of SUITES.

    Attributes:
        title: For people.
        shape: Of its data: a key of `items.SHAPES`.
        judge: An item and its outputs -> what became of each, in their order.
        summary: All results -> measures in percent: name -> {"value", "interval"}, the first one
            is drawn; and counts.
        select: Chooses among the rows of the data file.
        asking: What a model is asked, and what is kept of its answer.
        runs_programs: Its outputs run, or are compiled, in the sandbox.
        read: The items where they are not the rows of one file.
    """

    title: str
    shape: str
    judge: Callable[[Item, Sequence[str]], Sequence[Judged]]
    summary: Callable[[Sequence[Result]], dict[str, Any]]
    asking: Asking
    select: Callable[[Sequence[Item]], Sequence[Item]] = lambda items: items
    runs_programs: bool = True
    read: Callable[[Path], list[Item]] | None = None
