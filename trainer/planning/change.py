"""The single change of a recipe that lets it fit, found by planning each."""

from dataclasses import dataclass
from typing import Any

from trainer.config.recipe import cross_check
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.planning.data_facts import DataFacts
from trainer.planning.plan import RunPlan, make_plan
from trainer.planning.resolve import resolve
from trainer.planning.resolved import Resolved

_SLOWER = {  # factor on the time of a step, for choosing among changes that all fit
    "optim.optimizer=adamw_8bit": 1.0,
    "optim.optimizer=paged_adamw_8bit": 1.05,
    "engine.preset=gpu_zero1_offload": 1.2,
    "model.gradient_checkpointing=true": 1.5,
    "tuning.method=qlora": 1.6,
    "tuning.quant_type=nf4": 1.6,
    "engine.preset=gpu_zero3": 2.0,
}
_LEANER = {"full": "lora", "lora": "qlora"}


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
    plans = {
        override: make_plan(resolve(changed, recipe.shape, recipe.machine), data)
        for override, changed in _candidates(recipe.written)
    }
    changes = [
        Change(override, plan, plan.memory.total <= limit_bytes)
        for override, plan in plans.items()
        if not plan.faults
    ]
    enough = [change for change in changes if change.is_enough]
    if enough:
        return min(enough, key=lambda change: _cost(change.override))
    return min(changes, key=lambda change: change.plan.memory.total, default=None)


def _cost(override: str) -> float:
    """Order of preference: how much slower, and far behind, what changes the result."""
    if override.startswith("optim.micro_batch_size"):
        return 1.1
    return _SLOWER.get(override, 100.0)


def _candidates(config: RunConfig) -> list[tuple[str, RunConfig]]:
    half = max(8, config.data.seq_length // 2)
    rows = config.optim.micro_batch_size
    smaller = [rows // 2**power for power in range(1, 12) if rows // 2**power >= 1]
    overrides: list[tuple[str, str, Any]] = [
        *(("optim", "micro_batch_size", size) for size in smaller),
        ("optim", "optimizer", "adamw_8bit"),
        ("optim", "optimizer", "paged_adamw_8bit"),
        ("model", "gradient_checkpointing", True),
        ("tuning", "method", "lora"),
        ("tuning", "method", "qlora"),
        ("tuning", "quant_type", "nf4"),
        ("tuning", "double_quant", True),
        ("engine", "preset", "gpu_zero1_offload"),
        ("engine", "preset", "gpu_zero3"),
        ("engine", "precision", "auto"),
        ("data", "seq_length", half),
        ("tuning", "modules_to_save", []),
    ]
    found = []
    for section, key, value in overrides:
        block = getattr(config, section)
        if getattr(block, key) == value or not _proposes(config, key, value):
            continue
        changed = config.changed(section, **{key: value})
        try:
            cross_check(changed)
        except ConfigError:
            continue
        shown = str(value).lower() if isinstance(value, bool) else value
        found.append((f"{section}.{key}={shown}", changed))
    return found


def _proposes(config: RunConfig, key: str, value: Any) -> bool:
    """Whether a change stays near the recipe: the next leaner method, or the next leaner base."""
    tuning = config.tuning
    if key == "method":
        return tuning.variant == "plain" and _LEANER.get(tuning.method) == value
    is_plain_lora = tuning.method == "lora" and tuning.variant == "plain"
    return key != "quant_type" or not (is_plain_lora or tuning.base_quant_type == value)
