"""The one training loop: every task, method, precision and world size goes through it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.batches.loader import StepBatches
from trainer.architectures.classes import head_modules
from trainer.engine.engine import set_learning_rate
from trainer.engine.finite import FiniteCheck, Report, clip_alone, diverged, local_norm
from trainer.engine.gradients import GradientCheck, unreached_message
from trainer.engine.optim import learning_rate
from trainer.engine.state import TrainState, seed_step
from trainer.errors import DivergedError, MemoryExceededError, ModelError, StoppedError
from trainer.models.proof import fault_of, is_of_model
from trainer.processes.distributed import all_reduce_sum
from trainer.processes.stopping import Agreed, StopRequest
from trainer.processes.watchdog import Watchdog
from trainer.run.session import Run, Session

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


_MOST_SKIPS = 50  # fp16 halves its scale at each: 2^16 would be 2^-34


def train(session: Session, stop: StopRequest, watchdog: Watchdog) -> None:
    """Train from the step of the session's state to the end, validating and saving on the way.

    Ranks compare their requests to stop after every step; all have the same validations, so they
    stop early together. The watchdog ends the process if a step, a validation or a save does not
    end.

    Raises:
        StoppedError: A signal came, or the launcher is gone; the last step is saved.
        DivergedError: A loss or gradient is not finite, or no step in a row has fp16 gradients.
        ModelError: What the recipe wants to train gets no gradient in the first step.
    """
    run, state = session.run, session.state
    if state.is_unscored:
        if stopped := _validate(session, stop, watchdog):
            raise stopped
        with watchdog.watching("save after step", state.step):
            session.save()  # its best step is what export.py merges
    run.engine.train()
    logged, ahead = replace(state), None
    check = FiniteCheck(run.ranks.device, skips_overflows=run.engine.fp16_enabled())
    gradients = GradientCheck(run.engine)
    if run.ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.ranks.device)  # loading and the proof have their own
    while state.step < run.total_steps and not session.early_stop:
        with watchdog.watching("step", state.step + 1):
            started = time.perf_counter()
            batches = ahead or _batches(run, state.step)
            updates = max(0, state.step - state.skipped_steps + run.steps_ahead)
            rate = learning_rate(run.config.optim, updates, run.total_steps + run.steps_ahead)
            with _first_step_named(session, is_first=not gradients.is_settled):
                losses_A, norm = optimizer_step(run, batches, state.step, rate)
            _advance(state, run.engine, batches)
            ahead = _batches(run, state.step) if _goes_on(run, state.step) else None
            _check_reached(run, gradients.unreached(was_skipped=state.consecutive_skips > 0))
            check.record(state.step, losses_A, norm)
            due = _due_after(run, state)
            agreed = _agree(run, stop, check, settle=due.is_saved or due.is_logged)
            loss = _read_loss(losses_A, batches) if due.is_logged else 0.0
            state.train_seconds += time.perf_counter() - started
        stopped = None
        if agreed is not Agreed.GO_ON and not due.is_last:
            stopped = stop.error(agreed, _stopped(f"after step {state.step}", run))
        if due.is_logged:
            is_whole = run.ranks.world_size == 1 or run.engine.zero_optimization_stage() > 0
            _log_step(run, state, logged, loss, rate, norm if is_whole else None)
            logged = replace(state)
        elif run.log is not None:
            run.log.advance(state.step)
        if due.is_scored:
            stopped = _validate(session, stop, watchdog) or stopped
        if due.is_saved or stopped:
            with watchdog.watching("save after step", state.step):
                session.save()
        if stopped:
            raise stopped
    if session.early_stop:
        run.say(session.early_stop)


def _validate(session: Session, stop: StopRequest, watchdog: Watchdog) -> StoppedError | None:
    """Score the validation split; if the ranks stop meanwhile, the next start begins with it."""
    run, state = session.run, session.state
    where = f"in the validation after step {state.step}"
    state.is_unscored = True
    try:
        with (
            stop.between_batches(run.engine, _stopped(where, run)),
            watchdog.watching("validation after step", state.step),
        ):
            session.validate()
    except StoppedError as stopped:
        return stopped
    state.is_unscored = False
    return None


def _stopped(where: str, run: Run) -> str:
    return f"stopped {where} of {run.total_steps} and saved; the same command continues"


def _batches(run: Run, step: int) -> StepBatches:
    """The batches of a step; for a GPU in pinned memory."""
    batches = run.loader.step(step)
    if run.ranks.device.type != "cuda":
        return batches
    return replace(batches, micro_batches=[batch.pinned() for batch in batches.micro_batches])


def _goes_on(run: Run, step: int) -> bool:
    """Whether the batches of a coming step can be made while the device computes the one before.

    Rows of another epoch are packed first, and the log still asks for those of this one.
    """
    return step < run.total_steps and run.loader.position(step).rows_done > 0


def optimizer_step(
    run: Run, batches: StepBatches, step: int, rate: float
) -> tuple[Tensor, Tensor | float | None]:
    """All micro-batches of a step and one update; every function, or target, counts the same.

    The loss of the step is a sum over them / their number, over all micro-batches and ranks.
    DeepSpeed averages gradients over ranks, hence the world size.

    Returns:
        This rank's loss sums (A,), one a micro-batch, and the norm of the gradients; on the device.
    """
    set_learning_rate(run.engine, rate)
    seed_step(run.config.run.seed, step, run.ranks.rank)
    losses = []
    scale = run.ranks.world_size / (batches.count or 1.0)
    for batch in batches.micro_batches:
        shape = tuple(batch.input_ids_BT.shape)
        with memory_errors_named(f"at step {step + 1}, micro-batch of shape {shape}"):
            loss = run.task.loss_sum(run.engine, batch.to(run.ranks.device))
            run.engine.backward(loss.sum * scale, scale_wrt_gas=False)
            losses.append(loss.sum.detach().float())
    norm = local_norm(run.engine)
    if norm is not None and run.ranks.world_size == 1:
        clip_alone(run.engine, norm, run.config.optim.max_grad_norm)
    with memory_errors_named(f"at step {step + 1}, in the optimizer"):
        run.engine.step()
    return torch.stack(losses), run.engine.get_global_grad_norm() if norm is None else norm


@contextmanager
def _first_step_named(session: Session, *, is_first: bool) -> Iterator[None]:
    """The proof scores; in training some models do more, which can fail."""
    try:
        yield
    except Exception as error:
        if is_first and is_of_model(error):
            raise fault_of(session.model, error) from error
        raise


def _check_reached(run: Run, missing: list[str]) -> None:
    """Stop before a target stays as it is without a word.

    Full tuning has no targets, and nobody names the parts of a head: BigBird reads no pooler.
    """
    if not missing:
        return
    tuning, message = run.config.tuning, unreached_message(missing)
    heads = [f"{path}." for path in head_modules(run.engine.module.model.get_base_model())]
    is_of_head = [f"{path}.".startswith(tuple(heads)) for path in missing]
    if tuning.method != "full" and not all(is_of_head):
        raise ModelError(
            f"{message}; leave them out of tuning.target_modules and tuning.modules_to_save: names"
            " can be longer parts of a path"
        )
    run.say(f"{message}; no forward pass reads them, so they stay as they are")


@contextmanager
def memory_errors_named(where: str) -> Iterator[None]:
    """Raise the device's own error as ours, with the place; torch's CPU allocator has no class."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryExceededError(f"out of memory {where}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryExceededError(f"out of memory {where}") from error


def _agree(run: Run, stop: StopRequest, check: FiniteCheck, *, settle: bool) -> Agreed:
    """What all ranks do after this step."""
    report = check.read(settle=settle)
    agreed = stop.agreed(diverged=not report.is_finite)
    if agreed is Agreed.DIVERGED:
        reports = [Report.of(numbers) for numbers in stop.gather(report.numbers())]
        raise diverged(reports, run.loader.records)
    if agreed is not Agreed.GO_ON and not settle:  # a save follows that was not foreseen
        return _agree(run, stop, check, settle=True)
    return agreed


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


@dataclass(frozen=True)
class _Due:
    """What follows a step."""

    is_last: bool
    is_logged: bool
    is_scored: bool
    is_saved: bool


def _due_after(run: Run, state: TrainState) -> _Due:
    config, is_last = run.config, state.step == run.total_steps
    # A run without validations still needs a threshold at its end.
    is_scored = _is_due(config.eval.interval, run, state.step) or (
        is_last and state.best_step is None
    )
    return _Due(
        is_last,
        is_logged=is_last or state.step % config.log.interval == 0,
        is_scored=is_scored,
        is_saved=is_scored or is_last or _is_due(config.save.interval, run, state.step),
    )


def _is_due(interval: str | int, run: Run, step: int) -> bool:
    if interval == "never":
        return False
    if step == run.total_steps:
        return True
    if interval == "epoch":
        return run.loader.position(step).rows_done == 0
    return step % int(interval) == 0


def _read_loss(losses_A: Tensor, batches: StepBatches) -> float:
    """The loss of this step over all ranks; nothing else of ours waits for the device."""
    return float(all_reduce_sum(losses_A.sum())) / (batches.count or 1.0)


def _log_step(
    run: Run,
    state: TrainState,
    logged: TrainState,
    loss: float,
    rate: float,
    norm: Tensor | float | None,
) -> None:
    """Write a line: loss and norm of this step alone, so that they repeat; rates since `logged`."""
    seconds = state.train_seconds - logged.train_seconds
    records = state.records_seen - logged.records_seen
    tokens = state.tokens_seen - logged.tokens_seen
    if run.log is not None:
        uneven = run.loader.imbalance(state.step - 1)
        if run.loader.files is not None:
            _, files = run.loader.files_at(state.step - 1)
            if len(files) == 1:  # with rows of two files it is the loss of neither
                run.log.files("train_file", {files[0]: loss}, state.step)
        run.log.step(
            {
                "step": state.step,
                "epoch": run.loader.epochs_done(state.step),
                "loss": loss,
                "lr": rate,
                "grad_norm": _finite_or_none(norm),  # ranks without ZeRO keep their own
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
