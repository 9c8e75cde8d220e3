"""The one training loop: every task, method, precision and world size goes through it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.loader import StepBatches, TrainLoader
from trainer.config import RunConfig
from trainer.distributed import Ranks, all_reduce_sum
from trainer.engine import set_learning_rate
from trainer.errors import DivergedError, MemoryExceededError, StoppedError
from trainer.metrics import RunLog
from trainer.optim import learning_rate
from trainer.state import TrainState, seed_step
from trainer.stopping import StopRequest
from trainer.tasks import Task

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


_MOST_SKIPS = 50  # fp16 halves its scale at each: 2^16 would be 2^-34


@dataclass(frozen=True)
class Run:
    """What a training run is made of.

    Attributes:
        config: The recipe.
        ranks: This process among all.
        engine: Model and optimizer.
        task: The loss.
        loader: The steps' data.
        total_steps: Where the run ends.
        log: On rank 0; None elsewhere.
    """

    config: RunConfig
    ranks: Ranks
    engine: "DeepSpeedEngine"
    task: Task
    loader: TrainLoader
    total_steps: int
    log: RunLog | None


def train(
    run: Run,
    state: TrainState,
    stop: StopRequest,
    validate: Callable[[], None],
    save: Callable[[], None],
) -> None:
    """Train from state.step to the end, validating and saving on the way.

    Args:
        run: The parts.
        state: Advanced in place.
        stop: Asked after every step.
        validate: Scores the validation split and updates the best of `state`.
        save: Writes a checkpoint.

    Raises:
        StoppedError: A signal came; a checkpoint of the last step is on disk.
        DivergedError: A logged loss is not finite, or no step in a row has finite gradients.
    """
    run.engine.train()
    logged = replace(state)
    while state.step < run.total_steps:
        started = time.perf_counter()
        batches = run.loader.step(state.step)
        rate = learning_rate(run.config.optim, state.step - state.skipped_steps, run.total_steps)
        loss_sum = optimizer_step(run, batches, state.step, rate)
        _advance(state, run.engine, batches)
        is_last = state.step == run.total_steps
        is_logged = state.step % run.config.log.interval == 0 or is_last
        loss = _read_loss(loss_sum, batches) if is_logged else 0.0
        state.train_seconds += time.perf_counter() - started
        if is_logged:
            _log_step(run, state, logged, loss, rate)
            logged = replace(state)
        elif run.log is not None:
            run.log.advance(state.step)
        # A run without validations still needs a threshold at its end.
        due = _due(run.config.eval.interval, run, state.step) or (
            is_last and state.best_step is None
        )
        if due:
            validate()
        stopping = stop.agreed()
        if due or stopping or is_last or _due(run.config.save.interval, run, state.step):
            save()
        if stopping and not is_last:
            name = stop.received.name if stop.received else "a signal on another rank"
            raise StoppedError(
                f"{name}: stopped after step {state.step} of {run.total_steps} and saved;"
                " the same command continues"
            )


def optimizer_step(run: Run, batches: StepBatches, step: int, rate: float) -> Tensor:
    """All micro-batches of a step and one update; every function, or target, counts the same.

    The loss of the step is a sum over them / their number, over all micro-batches and ranks.
    DeepSpeed averages gradients over ranks, hence the world size.

    Returns:
        This rank's loss sum, on the device.
    """
    set_learning_rate(run.engine, rate)
    seed_step(run.config.run.seed, step, run.ranks.rank)
    total = torch.zeros((), device=run.ranks.device)
    scale = run.ranks.world_size / (batches.count or 1.0)
    for batch in batches.micro_batches:
        shape = tuple(batch.input_ids_BT.shape)
        with memory_errors_named(f"at step {step + 1}, micro-batch of shape {shape}"):
            loss = run.task.loss_sum(run.engine, batch.to(run.ranks.device))
            run.engine.backward(loss.sum * scale, scale_wrt_gas=False)
            total += loss.sum.detach()
    with memory_errors_named(f"at step {step + 1}, in the optimizer"):
        run.engine.step()
    return total


@contextmanager
def memory_errors_named(where: str) -> Iterator[None]:
    """The device's own error as ours, with the place; torch's CPU allocator has no class for it.

    Raises:
        MemoryExceededError: The device's memory did not hold it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryExceededError(f"out of memory {where}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryExceededError(f"out of memory {where}") from error


def _advance(state: TrainState, engine: "DeepSpeedEngine", batches: StepBatches) -> None:
    state.step += 1
    was_skipped = engine.skipped_steps > state.skipped_steps
    state.consecutive_skips = state.consecutive_skips + 1 if was_skipped else 0
    state.skipped_steps = engine.skipped_steps
    if state.consecutive_skips > _MOST_SKIPS:
        raise DivergedError(
            f"step {state.step}: gradients were not finite in {state.consecutive_skips} steps in a"
            " row, so nothing is learned; the last checkpoint is intact: lower optim.lr, or train"
            " in bf16 or fp32"
        )
    state.records_seen += batches.num_records
    state.tokens_seen += batches.num_tokens


def _due(interval: str | int, run: Run, step: int) -> bool:
    if interval == "never":
        return False
    every = run.loader.plan.steps_per_epoch if interval == "epoch" else int(interval)
    return step % every == 0 or (step == run.total_steps)


def _read_loss(loss_sum: Tensor, batches: StepBatches) -> float:
    """The loss of this step over all ranks; nothing else of ours waits for the device."""
    return float(all_reduce_sum(loss_sum)) / (batches.count or 1.0)


def _log_step(run: Run, state: TrainState, logged: TrainState, loss: float, rate: float) -> None:
    """Write a line: loss and norm of this step alone, so that they repeat; rates since `logged`."""
    norm = run.engine.get_global_grad_norm()
    seconds = state.train_seconds - logged.train_seconds
    records = state.records_seen - logged.records_seen
    tokens = state.tokens_seen - logged.tokens_seen
    if run.log is not None:
        uneven = run.loader.imbalance(state.step - 1)
        if run.loader.files is not None:
            _, files = run.loader.files_at(state.step - 1)
            if len(files) == 1:  # the loss of a step that has rows of two is that of neither
                run.log.files("train_file", {files[0]: loss}, state.step)
        run.log.step(
            {
                "step": state.step,
                "epoch": state.step / run.loader.plan.steps_per_epoch,
                "loss": loss,
                "lr": rate,
                "grad_norm": _finite_or_none(norm),  # ZeRO 0 keeps none
                "train_seconds": state.train_seconds,
                "records_per_second": records / seconds,
                "tokens_per_second": tokens / seconds,
                "packing_fill": run.loader.fill,
                "imbalance_micro_step": uneven.micro_step,
                "imbalance_step": uneven.optimizer_step,
                "memory_gib": _memory_gib(run.ranks.device),
                "skipped_steps": state.skipped_steps,
                **_loss_scale(run.engine),
            }
        )
    if not math.isfinite(loss):
        raise DivergedError(
            f"loss is {loss} at step {state.step}, epoch"
            f" {state.step / run.loader.plan.steps_per_epoch:.2f}; the last checkpoint is intact:"
            " lower optim.lr, add optim.warmup_steps, or check the rows of this step"
        )


def _loss_scale(engine: "DeepSpeedEngine") -> dict[str, float]:
    """fp16's scale beside the count of its overflows, skipped_steps."""
    return {"loss_scale": float(engine.optimizer.cur_scale)} if engine.fp16_enabled() else {}


def _finite_or_none(value: float | Tensor | None) -> float | None:
    """A number that JSON can hold; a skipped step has an infinite norm."""
    return float(value) if value is not None and math.isfinite(value) else None


def _memory_gib(device: torch.device) -> float:
    """Peak memory of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
