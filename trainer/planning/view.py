"""A plan for people: bars, a table of devices, and what to change."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from data.text.escaping import print_text
from trainer.planning.change import Change
from trainer.planning.host import host_line
from trainer.planning.memory import Memory
from trainer.planning.plan import RunPlan

_GIB, _MIB = 2**30, 2**20
_WIDTH = 40  # characters of the longest bar
_PRINTED_WIDTH = 100  # where there is no terminal
_NAMES = {
    "quantised_weights": "base, quantised",
    "frozen_weights": "base, 16 or 32 bit",
    "trained_weights": "adapters and head",
    "master_weights": "fp32 masters",
    "moments": "optimizer moments",
    "gradients": "gradients",
    "activations": "activations",
    "working": "working space",
    "cache": "keys and values",
    "buckets": "communication",
    "context": "CUDA context",
    "fragmentation": "fragmentation (5%)",
}


def bar_lines(memory: Memory, limit_bytes: float | None) -> list[str]:
    """A line and a bar for each component, and the total against the limit."""
    components = {name: size for name, size in memory.by_component().items() if size}
    scale = max([*components.values(), 1.0])
    lines = [
        f"{_NAMES[name]:>20}  {_bytes(size):>10}  {'█' * max(1, round(_WIDTH * size / scale))}"
        for name, size in components.items()
    ]
    limit = "" if limit_bytes is None else f"  of {_bytes(limit_bytes)}"
    return [*lines, f"{'peak of a rank':>20}  {_bytes(memory.total):>10}{limit}"]


def print_plan(plan: RunPlan, others: Sequence[RunPlan], change: Change | None) -> None:
    """Print the plan of one machine, and the table of others where there is one."""
    console = Console()
    if not console.is_terminal:
        console.width = _PRINTED_WIDTH
    print_text(console, plan_lines(plan, change))
    if others:
        console.print(_table(others))


def plan_lines(plan: RunPlan, change: Change | None) -> list[str]:
    """Everything about one machine."""
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    if plan.faults:
        verdict = "CANNOT RUN"
    lines = [f"{plan.machine}: {verdict}", *(f"  {fault}" for fault in plan.faults)]
    lines += [f"  {plan.doubt}"] if plan.doubt else []
    lines += bar_lines(plan.memory, plan.limit_bytes)
    if plan.largest_micro_batch_size is not None:
        lines.append(f"{'largest micro-batch':>20}  {plan.largest_micro_batch_size} rows")
    lines += [
        f"{'host memory':>20}  {host_line(plan.host, plan.host_limit_bytes)}",
        f"{'trained':>20}  {plan.num_trained:,} of {plan.num_parameters:,} parameters",
        f"{'data':>20}  {plan.data.num_functions:,} {plan.data.unit},"
        f" {plan.data.tokens_mean:.0f} tokens on average ({plan.data.source})",
        f"{'steps':>20}  {plan.num_steps:,}, each of {plan.accumulation} micro-batches a rank",
        f"{'work':>20}  {plan.flops:.2e} FLOPs; {_time(plan)}",
        f"{'communication':>20}  {_bytes(plan.step_communication_bytes)} sent by a rank in a step",
        f"{'checkpoint':>20}  {_bytes(plan.checkpoint_bytes)}",
    ]
    return lines + ([change_line(plan, change)] if change is not None else [])


def change_line(plan: RunPlan, change: Change) -> str:
    """The best single change and what it brings."""
    before, after = plan.memory.total, change.plan.memory.total
    effect = "is enough" if change.is_enough else "is not enough alone"
    return f"best single change: {change.override} {effect} ({_bytes(before)} -> {_bytes(after)})"


def _table(plans: Sequence[RunPlan]) -> Table:
    table = Table(title="Peak of a rank on other devices")
    for name in ("device", "peak", "of", "", "largest micro-batch", "hours"):
        table.add_column(name, justify="left" if name in ("device", "") else "right")
    for plan in plans:
        assert plan.limit_bytes is not None  # the table is of GPUs
        verdict = "cannot run" if plan.faults else "fits" if plan.fits else "too large"
        table.add_row(
            plan.machine,
            _bytes(plan.memory.total),
            _bytes(plan.limit_bytes),
            verdict,
            str(plan.largest_micro_batch_size),
            "-"
            if plan.seconds is None
            else f"{plan.seconds[0] / 3600:.1f} to {plan.seconds[1] / 3600:.1f}",
        )
    return table


def _time(plan: RunPlan) -> str:
    if plan.seconds is None:
        return "no time: the device's peak is not known"
    lowest, highest = plan.mfu
    return f"{_duration(plan.seconds)} at an MFU of {highest:.0%} to {lowest:.0%}"


def _duration(seconds: tuple[float, float]) -> str:
    unit, name = (3600, "h") if seconds[1] >= 3600 else (60, "min")
    return f"{seconds[0] / unit:.1f} to {seconds[1] / unit:.1f} {name}"


def _bytes(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 10 else f"{size / _MIB:.1f} MiB"
