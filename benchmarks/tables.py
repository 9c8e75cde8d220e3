"""Tables of a benchmark: drawn in a terminal, Markdown in a file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A figure and its upper bound; a negative bound is a lower one: -5 means at least 5."""

    name: str
    value: float
    bound: float

    @property
    def met(self) -> bool:
        """Whether the figure keeps the bound."""
        return self.value <= self.bound if self.bound >= 0 else self.value >= -self.bound


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Drawn by rich in a terminal; Markdown otherwise, to paste into RESULTS.md."""
    if not sys.stdout.isatty():
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_goals(goals: Sequence[Goal]) -> None:
    """One line for each goal; the last column says whether it is met."""
    print_table(
        ["goal", "measured", "bound", "met"],
        [
            [
                goal.name,
                f"{goal.value:.5g}",
                f"{'<=' if goal.bound >= 0 else '>='} {abs(goal.bound):g}",
                "yes" if goal.met else "no",
            ]
            for goal in goals
        ],
    )
