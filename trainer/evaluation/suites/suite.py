"""What a suite is: its items, what a model is asked, how outputs are judged, what is counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
    """

    id: str
    row: Mapping[str, Any]
    place: int


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
        prompt: What a model is asked; None: outputs can only be given.
        output: An item and what a model wrote after the prompt -> the output that is judged.
        stop: Texts that end the writing.
        num_samples: Outputs of each item.
        temperature: 0 takes the likeliest token.
        max_new_tokens: Of an output.
        runs_programs: Its outputs run in the sandbox.
    """

    title: str
    shape: str
    judge: Callable[[Item, Sequence[str]], Sequence[Judged]]
    summary: Callable[[Sequence[Result]], dict[str, Any]]
    select: Callable[[Sequence[Item]], Sequence[Item]] = lambda items: items
    prompt: Callable[[Item], str] | None = None
    output: Callable[[Item, str], str] = lambda _, text: text
    stop: Sequence[str] = field(default=())
    num_samples: int = 20
    temperature: float = 0.2
    top_p: float = 0.95
    max_new_tokens: int = 512
    runs_programs: bool = True
