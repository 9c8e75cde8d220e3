"""What a step costs over a bare loop: on one rank, and on two over DistributedDataParallel.

    OMP_NUM_THREADS=1 python benchmarks/step_overhead.py [--model NAME] [--steps N] [--json FILE]

The same micro-batches go through the program's step (engine, watch over gradients and finiteness)
and through forward, backward, clip_grad_norm_ and torch's AdamW alone, in turn, in the same
processes. Ratios are of CPU time, summed over the ranks: the median over the steps. The losses of
both are compared at every step.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.memory import MODELS
from benchmarks.runs import on_forked_ranks, overrides_of, write_model

if TYPE_CHECKING:
    from data.batches.loader import StepBatches
    from trainer.run.session import Run

# ranks, keys of the recipe, the goal
CASES = (
    (1, "engine.preset=cpu_zero0", 1.02),
    (1, "engine.preset=cpu_zero1", None),
    (1, "engine.preset=cpu_zero2", None),
    (2, "engine.preset=cpu_zero0", None),
    (2, "engine.preset=cpu_zero1", None),
    (2, "engine.preset=cpu_zero2", 1.03),
)
_RATE = 1e-4


def measure(build: Callable[[], "Run"], steps: int) -> dict[str, Any]:
    """CPU seconds of every step of both, and the largest difference of their losses."""
    import torch

    from trainer.engine.finite import FiniteCheck
    from trainer.processes.distributed import all_reduce_sum
    from trainer.run.loop import optimizer_step

    run = build()
    bare_step = _bare_loop(run)
    check = FiniteCheck(run.ranks.device, skips_overflows=False)

    def ours(batches: "StepBatches", step: int) -> Any:
        losses_A, norm = optimizer_step(run, batches, step, _RATE)
        check.record(step + 1, losses_A, norm)
        assert check.read(settle=False).is_finite
        return losses_A

    def seconds(one: Callable[["StepBatches", int], Any], step: int) -> tuple[float, Any]:
        batches = run.loader.step(step)
        torch.distributed.barrier()
        started = time.process_time()
        losses_A = one(batches, step)
        return float(all_reduce_sum(torch.tensor(time.process_time() - started))), losses_A

    found: dict[str, Any] = {"ours": [], "bare": [], "difference": 0.0}
    for step in range(steps):
        of_both = {}
        for name in ("ours", "bare") if step % 2 else ("bare", "ours"):
            cost, of_both[name] = seconds(ours if name == "ours" else bare_step, step)
            found[name].append(cost)
        gap = (of_both["ours"] - of_both["bare"]).abs() / of_both["bare"]
        found["difference"] = max(found["difference"], float(gap.max()))
    return found


def _bare_loop(run: "Run") -> Callable[["StepBatches", int], Any]:
    """A step of plain torch on a model with the engine's weights."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from trainer.engine.optim import build_optimizer
    from trainer.models.proof import use
    from trainer.run.build import build_model

    module = build_model(run.config)
    use(module, run.engine.module.strategy)
    module.load_state_dict(run.engine.module.state_dict())
    module.train()
    optimizer = build_optimizer(module.named_parameters(), run.config.optim)
    for group in optimizer.param_groups:
        group["lr"] = _RATE
    trained = [p for p in module.parameters() if p.requires_grad]
    is_alone = run.ranks.world_size == 1
    model = module if is_alone else DistributedDataParallel(module)

    def step(batches: "StepBatches", number: int) -> Any:
        torch.manual_seed(number)
        losses = []
        scale = run.ranks.world_size / batches.count
        for place, batch in enumerate(batches.micro_batches, 1):
            if not is_alone:
                model.require_backward_grad_sync = place == len(batches.micro_batches)
            loss = run.task.loss_sum(model, batch)
            (loss.sum * scale).backward()
            losses.append(loss.sum.detach())
        torch.nn.utils.clip_grad_norm_(trained, run.config.optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses)

    return step


def run_case(model: str, num_ranks: int, keys: str, steps: int) -> dict[str, Any]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        overrides = overrides_of(write_model(folder / "model", MODELS[model]), folder, keys)
        found = on_forked_ranks(measure, num_ranks, overrides, folder, steps)
    warm = steps // 10 + 1  # both find their pace
    pairs = list(zip(found["ours"], found["bare"], strict=True))[warm:]
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    return {"ranks": num_ranks, "keys": keys, "ratio": ratio, "steps": len(pairs),
            "bare_ms": 1e3 * statistics.median(bare for _, bare in pairs),
            "difference": found["difference"]}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Print the table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="bigcode-6M")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the rows")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows, is_missed = [], False
    print("| ranks | preset | over the bare loop | goal | bare step, CPU ms | losses differ |")
    print("|---|---|---|---|---|---|")
    for num_ranks, keys, goal in CASES:
        row = run_case(given.model, num_ranks, keys, given.steps)
        rows.append(row)
        is_missed |= goal is not None and row["ratio"] > goal
        print(
            f"| {num_ranks} | {keys.partition('=')[2]} | {row['ratio']:.3f} | {goal or ''} |"
            f" {row['bare_ms']:.0f} | {row['difference']:.1e} |",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
