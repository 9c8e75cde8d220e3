"""A recipe planned on the GPU that the command line names, or on the whole table."""

from dataclasses import dataclass
from typing import Any

from trainer.config.machines import DEVICES, Device, Machine, device_named, other_device
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.planning.change import Change, best_change
from trainer.planning.data_facts import data_facts
from trainer.planning.plan import RunPlan, make_plan, read_shape
from trainer.planning.resolve import resolve
from trainer.planning.resolved import Resolved


@dataclass(frozen=True)
class Planned:
    """The plan of a recipe.

    Attributes:
        plan: On the named GPU; on an A100-80 if none is named.
        others: On the GPUs of the table, if none is named.
        change: The best single change, if the plan does not fit.
    """

    plan: RunPlan
    others: list[RunPlan]
    change: Change | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = self.plan.to_json() | {"devices": [other.to_json() for other in self.others]}
        if self.change is not None:
            change = {"override": self.change.override, **self.change.plan.to_json()}
            values["best_change"] = change
        return values


def plan_recipe(
    config: RunConfig,
    device: str | None,
    memory_gib: float | None,
    num_ranks: int,
    host_gib: float | None = None,
) -> Planned:
    """Plan a recipe on a GPU of the table, on one of so much memory, or on the whole table.

    Raises:
        ConfigError: Two GPUs are named, one that is not in the table, or a number is not above 0.
    """
    if device and memory_gib:
        raise ConfigError("give --device or --memory, not both")
    if num_ranks < 1 or any(gib is not None and gib <= 0 for gib in (memory_gib, host_gib)):
        raise ConfigError("--gpus, --memory and --host-memory must be above 0")
    host_bytes = None if host_gib is None else host_gib * 2**30
    is_named = bool(device or memory_gib)
    gpu = DEVICES["A100-80"]
    if device:
        gpu = device_named(device)
    elif memory_gib:
        gpu = other_device(memory_gib)
    data = data_facts(config)
    shape = read_shape(config, data.num_classes)

    def on(one: Device) -> Resolved:
        return resolve(config, shape, Machine(one, num_ranks, host_bytes=host_bytes))

    plan = make_plan(on(gpu), data)
    others = [] if is_named else [make_plan(on(one), data) for one in DEVICES.values()]
    change = None if plan.fits else best_change(on(gpu), data)
    return Planned(plan, others, change)
