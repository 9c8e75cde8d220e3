"""Which rows a rank computes in a step: arithmetic on (seed, epoch, step, rank, world size).

Nothing here has state, so a resumed run, or one with another number of ranks, sees the same rows in
the same steps.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """The shape of an epoch.

    Attributes:
        num_rows: Rows of an epoch.
        steps_per_epoch: Optimizer steps of an epoch; rows are spread evenly over them.
        micro_batch_size: Rows of one forward pass on one rank.
        world_size: Ranks.
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
    """Steps of an epoch so that none holds more than `units_per_step` of its units on average."""
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


def rank_micro_batches(plan: Plan, step: int, rank: int) -> list[list[int]]:
    """Rows of a rank in a step, one list per micro-batch.

    Every rank has the same number of micro-batches, of which some can be empty: a collective in
    one rank's forward pass must find all others in theirs.
    """
    rows = list(step_rows(plan, step))
    size, world = plan.micro_batch_size, plan.world_size
    batches = []
    for accumulation in range(plan.gradient_accumulation_steps):
        first = (accumulation * world + rank) * size
        batches.append(rows[first : first + size])
    return batches
