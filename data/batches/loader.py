"""The micro-batches of a step, and of an evaluation, for one rank."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data.batches.batch import Batch, collate
from data.batches.order import (
    Imbalance,
    MicroBatches,
    Plan,
    epoch_rng,
    imbalance,
    rank_micro_batches,
    row_costs,
    step_rows,
    steps_for,
)
from data.batches.packing import Rows, joined, one_per_row, pack
from data.batches.sampling import balanced
from data.text.tokenization import ExampleSet


@dataclass(frozen=True)
class StepBatches:
    """A rank's part of one optimizer step.

    Attributes:
        micro_batches: The same number on every rank.
        count: Labelled functions, or targets, of the step over all ranks and micro-batches. Every
            rank derives it from the plan, so no collective and no device sync is needed.
        num_records: Functions, conversations or documents of the step, windows by their share.
        num_tokens: Real tokens of the step over all ranks.
    """

    micro_batches: list[Batch]
    count: float
    num_records: float
    num_tokens: int


@dataclass(frozen=True)
class Batching:
    """How examples become rows, and rows the steps of an epoch.

    Attributes:
        seq_length: Tokens of a row.
        global_batch_size: Records or rows of an optimizer step.
        batch_unit: "examples" or "rows".
        micro_batch_size: Rows of one forward pass on one rank.
        seed: Order of rows and partners.
        packing: False puts every example in its own row.
        packing_window: Examples packed at a time; None is all.
        isolate: False makes a packed row one text.
        sampling: "balanced" repeats functions of the rarer class until the classes match.
        hidden_size: Hidden size of the model, for the cost of its matrices in a row.
    """

    seq_length: int
    global_batch_size: int
    batch_unit: str
    micro_batch_size: int
    seed: int
    packing: bool = True
    packing_window: int | None = None
    isolate: bool = True
    sampling: str = "natural"
    hidden_size: int = 2048


class TrainLoader:
    """Steps as a pure function of their number: keeps only the packing of the current epoch.

    Args:
        examples: Training split.
        batching: Shape of rows and steps.
        rank, world_size: This process among all.
        files: First record of each file by name, where an epoch goes through one file after the
            other; None mixes them.
    """

    def __init__(
        self,
        examples: ExampleSet,
        batching: Batching,
        rank: int = 0,
        world_size: int = 1,
        files: Mapping[str, int] | None = None,
    ) -> None:
        self.examples = examples
        self.batching = batching
        self.rank = rank
        self.files = dict(files) if files else None
        self._epoch = 0
        self._rows = self._pack(0)
        # 1 + 6 x 1/6 adds up to a little above 2
        num_records = round(examples.share_E[self._rows.examples].sum())
        units = num_records if batching.batch_unit == "examples" else len(self._rows)
        steps = min(steps_for(units, batching.global_batch_size), len(self._rows))
        self.plan = Plan(len(self._rows), steps, batching.micro_batch_size, world_size)
        self._plan = self.plan  # of the current epoch, whose number of rows can differ a little

    @cached_property
    def fill(self) -> float:
        """Share of the rows' capacity that holds real tokens."""
        tokens = self.examples.lengths[self._rows.examples].sum()
        return float(tokens) / (len(self._rows) * self.batching.seq_length)

    @property
    def num_records(self) -> float:
        """Records of an epoch, counted as often as they are repeated."""
        return float(self.examples.share_E[self._rows.examples].sum())

    def step(self, step: int) -> StepBatches:
        """The micro-batches of optimizer step `step`, counted from 0 over all epochs."""
        rows, places = self._rows_of(step)
        chosen = rows.examples[rows.starts[places.start] : rows.starts[places.stop]]
        isolate = self.batching.isolate
        return StepBatches(
            micro_batches=[
                collate(self.examples, [rows.row(p) for p in row_places], isolate=isolate)
                for row_places in self._deal(step)[0][self.rank]
            ],
            count=float(self.examples.count_E[chosen].sum()),
            num_records=float(self.examples.share_E[chosen].sum()),
            num_tokens=int(self.examples.lengths[chosen].sum()),
        )

    def records(self, step: int, rank: int, micro_batch: int) -> list[int]:
        """Records of the split in a rank's micro-batch of a step, to name them in a message."""
        (rows, _), places = self._rows_of(step), self._deal(step)[0][rank][micro_batch]
        return [int(self.examples.record_E[one]) for place in places for one in rows.row(place)]

    def imbalance(self, step: int) -> Imbalance:
        """Cost of the slowest rank in a step over that of the mean rank."""
        return imbalance(*self._deal(step))

    def mean_imbalance(self, most_steps: int = 100) -> Imbalance:
        """The imbalance of the first steps of the first epoch, for the plan."""
        steps = range(min(most_steps, self.plan.steps_per_epoch))
        found = [self.imbalance(step) for step in steps]
        return Imbalance(
            micro_step=sum(one.micro_step for one in found) / len(found),
            optimizer_step=sum(one.optimizer_step for one in found) / len(found),
        )

    def files_at(self, step: int) -> tuple[list[str], list[str]]:
        """Files that are finished when a step begins, in its epoch, and those of its rows."""
        assert self.files is not None
        names, starts = list(self.files), list(self.files.values())
        rows, places = self._rows_of(step)
        ends = rows.examples[rows.starts[[places.start, places.stop - 1]]]
        first, last = np.searchsorted(starts, self.examples.record_E[ends], "right") - 1
        return names[:first], names[first : last + 1]

    def _deal(self, step: int) -> tuple[MicroBatches, npt.NDArray[np.int64]]:
        """Rows of every rank in a step, and the cost of each row of the step."""
        rows, places = self._rows_of(step)
        costs_R = row_costs(self.examples.lengths, rows, places, self.batching.hidden_size)
        return rank_micro_batches(self._plan, step, costs_R), costs_R

    def _rows_of(self, step: int) -> tuple[Rows, range]:
        """Rows of the epoch of a step, and the places of the step's own."""
        epoch = step // self.plan.steps_per_epoch
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._pack(epoch)
            self._plan = replace(self.plan, num_rows=len(self._rows))
        return self._rows, step_rows(self._plan, step)

    def _pack(self, epoch: int) -> Rows:
        """Rows of an epoch; epoch 0's where new partners would leave a step without a row."""
        rng = epoch_rng(self.batching.seed, epoch)
        chosen = np.arange(len(self.examples))
        if self.batching.sampling == "balanced":
            chosen = balanced(self.examples.label_E, self.examples.record_E, rng)
        records = self.examples.record_E[chosen]
        starts = list((self.files or {}).values())
        parts = np.split(chosen, np.searchsorted(records, starts))
        rows = joined([self._rows_from(part, rng) for part in parts if len(part)])
        if epoch and len(rows) < self.plan.steps_per_epoch:
            return self._pack(0)
        return rows

    def _rows_from(self, chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> Rows:
        if not self.batching.packing:
            rows = one_per_row(len(chosen), rng)
        else:
            lengths, window = self.examples.lengths[chosen], self.batching.packing_window
            rows = pack(lengths, self.batching.seq_length, rng, window)
        return Rows(chosen[rows.examples], rows.starts)


def evaluation_batches(
    examples: ExampleSet,
    *,
    seq_length: int,
    packing: bool,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    isolate: bool = True,
) -> Iterator[Batch]:
    """Every example exactly once over all ranks, in an order that never changes.

    Ranks yield the same number of batches; the last ones of some ranks can be empty.
    """
    rows = pack(examples.lengths, seq_length) if packing else one_per_row(len(examples))
    if not len(rows):
        return
    whole = Plan(len(rows), 1, micro_batch_size, world_size)
    costs_R = row_costs(examples.lengths, rows, range(len(rows)))
    for places in rank_micro_batches(whole, 0, costs_R)[rank]:
        yield collate(examples, [rows.row(place) for place in places], isolate=isolate)
