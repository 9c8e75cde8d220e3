"""The single change of a recipe that lets it fit, found by planning each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.config.recipe import cross_check
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.planning.data_facts import DataFacts
from trainer.planning.plan import RunPlan, make_plan
from trainer.planning.resolve import resolve
from trainer.planning.resolved import Resolved

_LEANER = {"full": "lora", "lora": "qlora"}
_OTHER_RESULT = 100.0  # far behind every change that leaves the result alone
_CHANGES: tuple[tuple[str, str, Any, float], ...] = (
    ("optim", "optimizer", "adamw_8bit", 1.0),
    ("optim", "optimizer", "paged_adamw_8bit", 1.05),
    ("model", "gradient_checkpointing", True, 1.5),
    ("tuning", "method", "lora", _OTHER_RESULT),
    ("tuning", "method", "qlora", 1.6),
    ("tuning", "quant_type", "nf4", 1.6),
    ("tuning", "double_quant", True, _OTHER_RESULT),
    ("engine", "preset", "gpu_zero1_offload", 1.2),
    ("engine", "preset", "gpu_zero3", 2.0),
    ("engine", "precision", "auto", _OTHER_RESULT),
    ("tuning", "modules_to_save", [], _OTHER_RESULT + 1),
)
"""Section, key, value, and a factor on the time of a step, to choose among changes that all fit."""


@dataclass(frozen=True)
class Change:
    """One key of the recipe changed, the plan it leads to, and whether that is enough."""

    override: str
    plan: RunPlan
    is_enough: bool


def best_change(
    recipe: Resolved, data: DataFacts, limit_bytes: float | None = None
) -> Change | None:
    """The single change that lets a recipe fit, found by trying each.

    Changes that leave the result alone come first, the least slow among them; then those that do
    not. Where none is enough, the one that saves most.
    The recipe is changed as it was written. Without `limit_bytes` it has to fit the device.
    """
    if limit_bytes is None:
        limit_bytes = recipe.machine.memory_bytes or float("inf")
    found: list[tuple[float, Change]] = []
    for section, key, value, slower in _candidates(recipe.written):
        changed = recipe.written.changed(section, **{key: value})
        try:
            cross_check(changed)
        except ConfigError:
            continue
        plan = make_plan(resolve(changed, recipe.shape, recipe.machine), data)
        if not plan.faults:
            shown = str(value).lower() if isinstance(value, bool) else value
            is_enough = plan.memory.total <= limit_bytes
            found.append((slower, Change(f"{section}.{key}={shown}", plan, is_enough)))
    enough = [each for each in found if each[1].is_enough]
    if enough:
        return min(enough, key=lambda each: each[0])[1]
    changes = [change for _, change in found]
    return min(changes, key=lambda change: change.plan.memory.total, default=None)


def _candidates(config: RunConfig) -> Iterator[tuple[str, str, Any, float]]:
    """Changes that this recipe can take, with their factor on the time of a step."""
    rows = config.optim.micro_rows
    while rows := rows // 2:
        yield "optim", "micro_batch_size", rows, 1.1
    half = max(8, config.data.seq_length // 2)
    for section, key, value, slower in (*_CHANGES, ("data", "seq_length", half, _OTHER_RESULT)):
        is_new = getattr(getattr(config, section), key) != value
        if is_new and _proposes(config, key, value):
            yield section, key, value, slower


def _proposes(config: RunConfig, key: str, value: Any) -> bool:
    """Whether a change stays near the recipe: the next leaner method, or the next leaner base."""
    tuning = config.tuning
    if key == "method":
        return tuning.variant == "plain" and _LEANER.get(tuning.method) == value
    is_plain_lora = tuning.method == "lora" and tuning.variant == "plain"
    return key != "quant_type" or not (is_plain_lora or tuning.base_quant_type == value)
