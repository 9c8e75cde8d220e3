"""The rows that a rank computes in a step: arithmetic on (seed, epoch, step, rank, world size).

Nothing here has state. A resumed run, or a run with another number of ranks, therefore sees the
same rows in the same steps.

R rows of a step, W ranks, A micro-steps (accumulation), M rows of a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.batches.packing import Rows

MicroBatches = list[list[list[int]]]  # of a step: [rank][micro-step] -> places of rows


@dataclass(frozen=True)
class Plan:
    """The shape of an epoch.

    Attributes:
        steps_per_epoch: Optimizer steps of an epoch; rows are spread evenly over them.
    """

    num_rows: int
    steps_per_epoch: int
    micro_batch_size: int
    world_size: int

    @property
    def gradient_accumulation_steps(self) -> int:
        """Forward passes of a rank in a step: enough for the fullest step."""
        most_rows = -(-self.num_rows // self.steps_per_epoch)
        return -(-most_rows // (self.micro_batch_size * self.world_size))


def steps_for(num_units: float, units_per_step: int) -> int:
    """Steps of an epoch, so that a step has at most `units_per_step` units on average."""
    return max(1, int(-(-num_units // units_per_step)))


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """The order of an epoch, equal on all ranks."""
    return np.random.default_rng([seed, epoch])


def step_rows(plan: Plan, step: int) -> range:
    """Rows of a step, as places in the epoch's order; `step` counts from 0 over all epochs."""
    index = step % plan.steps_per_epoch
    first = index * plan.num_rows // plan.steps_per_epoch
    last = (index + 1) * plan.num_rows // plan.steps_per_epoch
    return range(first, last)


def row_costs(
    lengths: npt.NDArray[np.integer[Any]], rows: Rows, places: range, hidden_size: int = 2048
) -> npt.NDArray[np.int64]:
    """Cost of computing rows: 6 x hidden size x tokens + the sum of squared function lengths.

    For each token, a transformer layer takes about 24 h^2 multiplications in its matrices and 4 h l
    in attention within functions of l tokens; only the ratio matters.
    """
    starts = rows.starts[places.start : places.stop + 1]
    tokens = lengths[rows.examples[starts[0] : starts[-1]]].astype(np.int64)
    return np.add.reduceat((6 * hidden_size + tokens) * tokens, starts[:-1] - starts[0])


def rank_micro_batches(plan: Plan, step: int, costs_R: npt.NDArray[np.int64]) -> MicroBatches:
    """Deal the rows of a step so that ranks wait little, within a micro-step and at its end.

    Rows of similar cost share a micro-step, the costliest first. Micro-steps whose micro-batches
    differ most are dealt first, each time the costliest micro-batch to the rank with the least cost
    so far (Graham 1969); later ones even out the rest.

    Args:
        step: Counted from 0 over all epochs.
        costs_R: Cost of each row of the step, in the order of `step_rows`, above 0.

    Returns:
        The same on all ranks. Every rank has the same number of micro-batches, some possibly empty:
        a collective in one rank's forward pass must find all others in theirs.
    """
    places = step_rows(plan, step)
    num_steps, world_size = plan.gradient_accumulation_steps, plan.world_size
    empty = num_steps * world_size * plan.micro_batch_size - len(costs_R)
    costs = np.append(costs_R, np.zeros(empty, np.int64)) if empty else costs_R
    rows_AWM, costs_AW = _micro_steps(costs, num_steps, plan.micro_batch_size, world_size)
    spread_A = costs_AW[:, -1] - costs_AW[:, 0]  # negative: ascending is the widest first
    added_AW = costs_AW * world_size
    loads_AW = np.empty((num_steps, world_size), np.int64)
    loads_W = np.arange(world_size)  # load x W + rank: sorted ascending, ties by rank
    for micro_step in spread_A.argsort(kind="stable").tolist():
        loads_AW[micro_step] = loads_W
        loads_W += added_AW[micro_step]
        loads_W.sort()
    places_WAM = np.empty((world_size, num_steps, plan.micro_batch_size), np.int64)
    places_WAM[loads_AW % world_size, np.arange(num_steps)[:, None]] = rows_AWM + places.start
    micro_batches: MicroBatches = places_WAM.tolist()
    if not empty:
        return micro_batches
    return [[[p for p in batch if p < places.stop] for batch in rank] for rank in micro_batches]


@dataclass(frozen=True)
class Imbalance:
    """Time with waiting / time without: the slowest rank's cost over the mean rank's.

    Attributes:
        micro_step: If ranks wait for each other in every micro-step (ZeRO-3).
        optimizer_step: If they wait once, at the end of the step (ZeRO 0 to 2).
    """

    micro_step: float
    optimizer_step: float


def imbalance(
    micro_batches: Sequence[Sequence[Sequence[int]]], costs_R: npt.NDArray[np.int64]
) -> Imbalance:
    """How unevenly a step is dealt; a step without rows is even.

    Args:
        micro_batches: [rank][micro-step] -> places of the rows.
        costs_R: Cost of each row of the step, in the order of its places.
    """
    first = min((p for rank in micro_batches for batch in rank for p in batch), default=0)
    costs = costs_R.tolist()
    costs_WA = np.array(
        [[sum(costs[p - first] for p in b) for b in rank] for rank in micro_batches]
    )
    mean = float(costs_WA.sum()) / len(micro_batches)
    if not mean:
        return Imbalance(1.0, 1.0)
    return Imbalance(
        micro_step=float(costs_WA.max(0).sum()) / mean,
        optimizer_step=float(costs_WA.sum(1).max()) / mean,
    )


def _micro_steps(
    costs: npt.NDArray[np.int64], *shape_AMW: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Micro-batches of nearly equal cost for each micro-step, the costliest first.

    Returns:
        Their rows (A, W, M) and costs (A, W).
    """
    costliest_first = (-costs).argsort(kind="stable")  # stable, or machines could differ in ties
    order_AMW = costliest_first.reshape(shape_AMW)
    costs_AMW = costs[costliest_first].reshape(shape_AMW)
    rows_AWM, costs_AW = order_AMW[:, 0, ::-1, None], costs_AMW[:, 0, ::-1]  # the cheapest first
    for place in range(1, shape_AMW[1]):  # the cheapest takes the costliest of the next W rows
        rows_AWM = np.append(rows_AWM, order_AMW[:, place, :, None], axis=2)
        costs_AW = costs_AW + costs_AMW[:, place]
        cheapest_first = np.arange(len(costs_AW))[:, None], costs_AW.argsort(1, kind="stable")
        rows_AWM, costs_AW = rows_AWM[cheapest_first], costs_AW[cheapest_first]
    return rows_AWM[:, ::-1], costs_AW[:, ::-1]
