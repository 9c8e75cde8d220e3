"""Bytes that a rank sends in a step: counted by DeepSpeed's communication logger, and planned.

    python benchmarks/communication.py [--ranks N] [--json FILE]

Each case trains the program's own model and engine for three steps in its own processes; the third
is counted. The logger's bytes are right, its latencies are not (it times what it queues), so times
are not used. Bytes are those of rings: a rank sends 2 (n - 1) / n of an all-reduced tensor and
(n - 1) / n of a gathered or scattered one. Exits 1 if the plan is off by more than 5%.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.memory import MODELS
from benchmarks.runs import QUICKSTART, on_forked_ranks, overrides_of, write_model

if TYPE_CHECKING:
    from trainer.run.session import Run

GOAL = 0.05
MODEL = "bigcode-6M"
# A real model's layers are above ZeRO 3's persistence threshold, those of this one below.
LAYERS = {"stage3_param_persistence_threshold": 1000}
# And a real model is above what ZeRO 3 keeps gathered.
LARGE = LAYERS | {
    "stage3_max_live_parameters": 300_000, "stage3_max_reuse_distance": 300_000,
    "stage3_prefetch_bucket_size": 100_000,
}  # fmt: skip
# keys of the recipe, the preset's communication dtype, its other ZeRO keys
CASES: tuple[tuple[str, str | None, dict[str, int]], ...] = (
    ("zero0", None, {}),
    ("zero1", None, {}),
    ("zero2", None, {}),
    ("zero1 engine.precision=bf16", None, {}),
    ("zero2 engine.precision=bf16", None, {}),
    ("zero1", "bf16", {}),
    ("zero2", "bf16", {}),
    ("zero1 engine.precision=bf16", "fp32", {}),
    ("zero1 optim.global_batch_size=32", None, {}),
    ("zero2 optim.global_batch_size=32", None, {}),
    ("zero3", None, LAYERS),
    ("zero3 engine.precision=bf16", None, LAYERS),
    ("zero3 model.gradient_checkpointing=true", None, LAYERS),
    ("zero3 optim.global_batch_size=32", None, LAYERS),
    ("zero3", None, LARGE),
    ("zero3 model.gradient_checkpointing=true", None, LARGE),
    ("zero3 optim.global_batch_size=32 engine.precision=bf16", None, LARGE),
)


def measure(
    build: Callable[[Callable[[dict[str, Any]], None]], "Run"],
    dtype: str | None,
    zero: dict[str, int],
) -> dict[str, Any]:
    """Three steps; the messages of the last one as operation -> {bytes: times}."""
    from deepspeed.comm import comm

    from trainer.run.loop import optimizer_step

    def change(settings: dict[str, Any]) -> None:
        settings["comms_logger"] = {"enabled": True, "prof_all": True, "verbose": False}
        settings["zero_optimization"] |= zero
        if dtype is not None:
            settings["communication_data_type"] = dtype

    run = build(change)
    at_start = _messages(comm.comms_logger.comms_dict)
    for step in range(3):
        comm.comms_logger.comms_dict.clear()
        optimizer_step(run, run.loader.step(step), step, 1e-4)
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in run.engine.parameters()]
    return {
        "messages": _messages(comm.comms_logger.comms_dict),
        "at_start": at_start,
        "accumulation": len(run.loader.step(2).micro_batches),
        "num_trained": sum(size for size, is_trained in sizes if is_trained),
        "num_parameters": sum(size for size, _ in sizes),
    }


def _messages(logged: dict[str, dict[int, list[Any]]]) -> dict[str, dict[int, int]]:
    return {
        operation: {size: entry[0] for size, entry in sizes.items() if size}
        for operation, sizes in logged.items()
        if any(sizes)
    }


def sent_by_a_rank(messages: dict[str, dict[str, int]], world_size: int) -> float:
    """Bytes over the links, by rings.

    The logger counts the tensor that a rank gives: the whole one for all_reduce and reduce_scatter,
    the rank's share for all_gather.
    """
    share = (world_size - 1) / world_size
    total = 0.0
    for operation, sizes in messages.items():
        moved = sum(int(size) * times for size, times in sizes.items())
        if "all_reduce" in operation:
            total += 2 * share * moved
        elif "gather" in operation:
            total += share * world_size * moved
        else:
            total += share * moved
    return total


def planned(
    overrides: list[str],
    world_size: int,
    dtype: str | None,
    zero: dict[str, int],
    measured: dict[str, Any],
) -> float:
    """The plan's bytes for the accumulation that was measured."""
    from trainer.config.machines import Machine
    from trainer.config.preset import Preset
    from trainer.config.recipe import load_run_config
    from trainer.planning.plan import communication_bytes, read_shape
    from trainer.planning.resolve import resolve

    config = load_run_config(QUICKSTART, overrides)
    recipe = resolve(config, read_shape(config), Machine(None, world_size))
    settings: dict[str, Any] = {"zero_optimization": {**recipe.preset.zero, **zero}}
    if dtype is not None:
        settings["communication_data_type"] = dtype
    recipe = replace(recipe, preset=Preset(recipe.preset.name, settings))
    return communication_bytes(recipe, measured["accumulation"])


def run_case(keys: str, dtype: str | None, zero: dict[str, int], world_size: int) -> dict[str, Any]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        preset = f"engine.preset=cpu_{keys}"
        overrides = overrides_of(write_model(folder / "model", MODELS[MODEL]), folder, preset)
        measured = on_forked_ranks(measure, world_size, overrides, folder, dtype, zero)
        plan = planned(overrides, world_size, dtype, zero, measured)
    sent = sent_by_a_rank(measured["messages"], world_size)
    return {"keys": keys, "dtype": dtype, "ranks": world_size, "sent": sent, "planned": plan,
            **measured}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Print the table; 1 if the plan is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows, worst = [], 0.0
    for keys, dtype, zero in CASES:
        row = run_case(keys, dtype, zero, given.ranks)
        rows.append(row)
        error = row["planned"] / row["sent"] - 1 if row["sent"] else 0.0
        worst = max(worst, abs(error))
        print(
            f"{keys}{f' sent in {dtype}' if dtype else ''}{' large' if zero is LARGE else ''}:"
            f" accumulation {row['accumulation']}, sent {row['sent']:,.0f},"
            f" planned {row['planned']:,.0f} ({error:+.1%})",
            flush=True,
        )
    print(f"trained {rows[0]['num_trained']:,} of {rows[0]['num_parameters']:,}; worst {worst:.1%}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(worst > GOAL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
