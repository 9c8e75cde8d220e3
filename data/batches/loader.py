"""The micro-batches of a step, and of an evaluation, for one rank."""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data.batches import order
from data.batches.packing import Rows, joined, one_per_row, pack
from data.batches.sampling import balanced, weighted
from data.text.tokenization import ExampleSet

if TYPE_CHECKING:
    from data.batches.batch import Batch  # imports torch, which the plan of an epoch does without


@dataclass(frozen=True)
class StepBatches:
    """A rank's part of one optimizer step.

    Attributes:
        micro_batches: The same number on every rank.
        count: Labelled functions or targets in the step, over all ranks and micro-batches. Every
            rank derives it from the plan, so no collective and no device sync is needed.
        num_records: Functions, conversations or documents in the step, windows by their share.
        num_tokens: Real tokens in the step over all ranks.
    """

    micro_batches: list["Batch"]
    count: float
    num_records: float
    num_tokens: int


@dataclass(frozen=True)
class Batching:
    """How examples become rows, and rows the steps of an epoch.

    Attributes:
        global_batch_size: Records or rows in an optimizer step.
        batch_unit: "examples" or "rows".
        seed: Draws the order of rows, and which examples share one.
        packing: False puts every example in its own row.
        packing_window: Examples packed at a time; None packs all at once.
        isolate: False makes a packed row one text.
        sampling: "balanced" repeats functions of rarer classes until the classes match.
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


@dataclass(frozen=True)
class Start:
    """Where in the data a batch size begins to count: another one goes on from any row.

    Rows of an epoch do not depend on the batch size, so they are the position.

    Attributes:
        step: The step, counted from 0 over all epochs.
        rows_done: Rows of this epoch that earlier steps have trained.
        least_rows: With fewer rows of its own, this epoch takes those of epoch 0.
    """

    step: int = 0
    epoch: int = 0
    rows_done: int = 0
    least_rows: int = 0


class TrainLoader:
    """Steps as a pure function of their number; only the packing of the current epoch is kept.

    Args:
        files: First record of each file by name, for epochs that go through one file after the
            other; None mixes files.
        start: Where this batch size begins, after steps of another one.
        times_N: How often an epoch takes each record; None takes each once.
    """

    def __init__(
        self,
        examples: ExampleSet,
        batching: Batching,
        rank: int = 0,
        world_size: int = 1,
        files: Mapping[str, int] | None = None,
        start: Start | None = None,
        times_N: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.times_N = times_N
        self.examples = examples
        self.batching = batching
        self.rank = rank
        self.files = dict(files) if files else None
        self._epoch = 0
        self._rows = self._pack(0)
        self.plan = order.Plan(
            len(self._rows), self._steps_of(self._rows), batching.micro_batch_size, world_size
        )
        self.start = start or Start()
        rest = self.start.rows_done and self._steps_of(
            _after(self._epoch_rows(self.start.epoch), self.start.rows_done)
        )
        self._num_rest = rest  # steps of the rest of the first epoch
        self._whole_epoch = self.start.epoch + bool(rest)  # from here on every epoch is whole
        self._whole_step = self.start.step + rest

    @cached_property
    def fill(self) -> float:
        """Share of real tokens in the capacity of the rows."""
        tokens = self.examples.lengths[self._rows.examples].sum()
        return float(tokens) / (len(self._rows) * self.batching.seq_length)

    @property
    def num_records(self) -> float:
        """Records of an epoch, repeated ones counted every time."""
        return float(self.examples.share_E[self._rows.examples].sum())

    def steps_until(self, epochs: int) -> int:
        """Steps of the whole run, those before the start included."""
        return self._whole_step + (epochs - self._whole_epoch) * self.plan.steps_per_epoch

    @property
    def steps_ahead(self) -> int:
        """How many steps later it would be now if every step had had this batch size."""
        return self._whole_epoch * self.plan.steps_per_epoch - self._whole_step

    def position(self, step: int) -> Start:
        """Where a step begins."""
        if step == self.start.step:
            return self.start
        _, plan, index, epoch = self._locate(step)
        is_rest = step < self._whole_step
        done = order.step_rows(plan, index).start + (self.start.rows_done if is_rest else 0)
        least = self.start.least_rows if is_rest else plan.steps_per_epoch
        return Start(step, epoch, done, least)

    def epochs_done(self, step: int) -> float:
        """Epochs that are done when a step begins."""
        if step >= self._whole_step:
            return self._whole_epoch + (step - self._whole_step) / self.plan.steps_per_epoch
        whole = len(self._epoch_rows(self.start.epoch))
        return self.start.epoch + self.position(step).rows_done / whole

    def records_done(self, step: int) -> tuple[float, float]:
        """Records of the epoch that are done when a step begins, and all of this epoch."""
        start = self.position(step)
        rows = self._epoch_rows(start.epoch)
        share_E = self.examples.share_E[rows.examples]
        return float(share_E[: rows.starts[start.rows_done]].sum()), float(share_E.sum())

    def step(self, step: int) -> StepBatches:
        """The micro-batches of optimizer step `step`, counted from 0 over all epochs."""
        from data.batches.batch import collate

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
        """Indices of the records in a rank's micro-batch of a step, to name them in a message."""
        (rows, _), places = self._rows_of(step), self._deal(step)[0][rank][micro_batch]
        return [int(self.examples.record_E[one]) for place in places for one in rows.row(place)]

    def imbalance(self, step: int) -> order.Imbalance:
        """Cost of the slowest rank in a step over the cost of the mean rank."""
        return order.imbalance(*self._deal(step))

    def mean_imbalance(self, most_steps: int = 100) -> order.Imbalance:
        """Mean imbalance over the first steps, an epoch at most, for the plan."""
        steps = range(min(most_steps, self.plan.steps_per_epoch))
        found = [astuple(self.imbalance(self.start.step + step)) for step in steps]
        return order.Imbalance(*np.mean(found, axis=0).tolist())

    def files_at(self, step: int) -> tuple[list[str], list[str]]:
        """Files of the epoch that are finished when a step begins, and the files of its rows."""
        assert self.files is not None
        names, starts = list(self.files), list(self.files.values())
        rows, places = self._rows_of(max(step, self.start.step))
        ends = rows.examples[rows.starts[[places.start, places.stop - 1]]]
        first, last = np.searchsorted(starts, self.examples.record_E[ends], "right") - 1
        return names[:first], names[first : last + 1]

    def _deal(self, step: int) -> tuple[order.MicroBatches, npt.NDArray[np.int64]]:
        """Rows of every rank in a step, and the cost of each row of the step."""
        rows, plan, index, _ = self._locate(step)
        places = order.step_rows(plan, index)
        costs_R = order.row_costs(self.examples.lengths, rows, places, self.batching.hidden_size)
        return order.rank_micro_batches(plan, index, costs_R), costs_R

    def _rows_of(self, step: int) -> tuple[Rows, range]:
        """Rows of the epoch that a step belongs to, and the places of the step's rows."""
        rows, plan, index, _ = self._locate(step)
        return rows, order.step_rows(plan, index)

    def _locate(self, step: int) -> tuple[Rows, order.Plan, int, int]:
        """Rows of a step's epoch, or of the rest of one, their plan, the step in it, the epoch."""
        assert step >= self.start.step
        if step < self._whole_step:
            epoch, index, num_steps = self.start.epoch, step - self.start.step, self._num_rest
            rows = _after(self._epoch_rows(epoch), self.start.rows_done)
        else:
            num_steps = self.plan.steps_per_epoch
            later, index = divmod(step - self._whole_step, num_steps)
            epoch = self._whole_epoch + later
            rows = self._epoch_rows(epoch)
        # an epoch can have a few rows more or less than the first
        plan = replace(self.plan, num_rows=len(rows), steps_per_epoch=num_steps)
        return rows, plan, index, epoch

    def _epoch_rows(self, epoch: int) -> Rows:
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._pack(epoch)
        return self._rows

    def _steps_of(self, rows: Rows) -> int:
        """Steps of an epoch's rows, or of the rest of them."""
        # 1 + 6 x 1/6 adds up to a little above 2
        records = round(self.examples.share_E[rows.examples[rows.starts[0] :]].sum())
        units = records if self.batching.batch_unit == "examples" else len(rows)
        return min(order.steps_for(units, self.batching.global_batch_size), len(rows))

    def _pack(self, epoch: int) -> Rows:
        """Rows of an epoch; those of epoch 0 if new ones would leave a step without a row."""
        rng = order.epoch_rng(self.batching.seed, epoch)
        chosen = np.arange(len(self.examples))
        if self.batching.sampling == "balanced":
            chosen = balanced(self.examples.rarest_E, self.examples.record_E, rng)
        elif self.times_N is not None:
            chosen = weighted(self.times_N, self.examples.record_E, rng)
        records = self.examples.record_E[chosen]
        starts = list((self.files or {}).values())
        parts = np.split(chosen, np.searchsorted(records, starts))
        rows = joined([self._rows_from(part, rng) for part in parts if len(part)])
        if epoch and len(rows) < self._least_rows(epoch):
            return self._pack(0)
        return rows

    def _least_rows(self, epoch: int) -> int:
        is_rest = epoch == self.start.epoch and self.start.rows_done
        return self.start.least_rows if is_rest else self.plan.steps_per_epoch

    def _rows_from(self, chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> Rows:
        if not self.batching.packing:
            rows = one_per_row(len(chosen), rng)
        else:
            lengths, window = self.examples.lengths[chosen], self.batching.packing_window
            rows = pack(lengths, self.batching.seq_length, rng, window)
        return Rows(chosen[rows.examples], rows.starts)


def _after(rows: Rows, num_done: int) -> Rows:
    return Rows(rows.examples, rows.starts[num_done:])


def evaluation_batches(
    examples: ExampleSet,
    *,
    seq_length: int,
    packing: bool,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    isolate: bool = True,
) -> Iterator["Batch"]:
    """Every example exactly once over all ranks, in an order that never changes.

    Ranks yield the same number of batches; the last ones of some ranks can be empty.
    """
    from data.batches.batch import collate

    rows = pack(examples.lengths, seq_length) if packing else one_per_row(len(examples))
    if not len(rows):
        return
    whole = order.Plan(len(rows), 1, micro_batch_size, world_size)
    costs_R = order.row_costs(examples.lengths, rows, range(len(rows)))
    for places in order.rank_micro_batches(whole, 0, costs_R)[rank]:
        yield collate(examples, [rows.row(place) for place in places], isolate=isolate)
