"""A whole run in the order it happens: take the folder, build, continue, train, report."""

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import Store

from data.batches.loader import Start, TrainLoader
from data.prepared.prepare import Prepared
from data.text.labels import Classes
from data.text.terminal import step
from trainer.cluster.roll_call import call_the_roll, check_shared_folder
from trainer.config.sections import OptimSection, RunConfig
from trainer.engine.engine import build_engine, deepspeed_config
from trainer.errors import ConfigError, MachineError, MemoryExceededError, StoppedError
from trainer.evaluation.evaluation import evaluation_of
from trainer.evaluation.report import print_report
from trainer.generation.prompts import run_prompts
from trainer.losses.tasks import TASKS
from trainer.models.proof import choose_strategy
from trainer.planning.resolved import Resolved
from trainer.processes.distributed import (
    Ranks,
    agreed,
    device_name,
    gather,
    is_equal_everywhere,
    start,
    stop,
)
from trainer.processes.launchers import Launcher
from trainer.processes.peers import connection_error, end_hung
from trainer.processes.stopping import StopRequest
from trainer.processes.watchdog import WARM_UP, Watchdog
from trainer.run.banner import banner_lines, ending_lines, time_line
from trainer.run.build import proof_settings, resolve_here, run_model
from trainer.run.data_report import remark_lines
from trainer.run.loop import memory_errors_named, train
from trainer.run.passport import Original, Passport, open_passport
from trainer.run.planned_run import explained, peak_lines, write_plan
from trainer.run.preparation import print_lines, training_loader
from trainer.run.session import Run, Session
from trainer.run_folder.checkpoint import Checkpoint
from trainer.run_folder.folder import (
    DATA,
    FACTS,
    MANIFEST,
    RECIPE,
    RunLock,
    open_run_folder,
    verify,
    write_json,
    write_yaml,
)
from trainer.run_folder.metrics import RunLog
from trainer.run_folder.resume import (
    batches_of,
    find_checkpoint,
    initial_state,
    kept_rows,
    moved_lines,
    refuse_other_run,
    run_identity,
)
from trainer.run_folder.start import start_lines
from trainer.tuning.continued import adapter_folder


def run_training(
    config: RunConfig,
    prepared: Prepared,
    above: Sequence[Launcher],
    store: Store | None = None,
    original: Original | None = None,
) -> dict[str, Any] | None:
    """Train, evaluate and export; returns the test report on rank 0.

    If the launchers above this process end, the run saves and ends.
    Without a store where the ranks have met, they meet now.

    Raises:
        ValueError: One of trainer.errors, with its exit code, on every rank.
    """
    ranks = start(config.engine.timeout_seconds, store)
    lock: RunLock | None = None
    try:
        # To name one that is lost, and for run.json.
        own = {"host": socket.gethostname(), "device": device_name(ranks.device)}
        answers = gather(own, ranks)
        hosts, devices = (tuple(answer[key] for answer in answers) for key in own)
        ranks = replace(ranks, hosts=hosts, devices=devices)
        call_the_roll(config, ranks)
        lock = agreed(ranks, lambda: open_run_folder(config) if ranks.is_main else None)
        check_shared_folder(config.output_dir, ranks)
        report = _train(config, prepared, ranks, above, original)
    except StoppedError:
        with suppress(RuntimeError):  # launchers kill the others once a rank has ended
            torch.distributed.barrier()
        raise
    except RuntimeError as error:
        if (lost := connection_error(error, ranks)) is None:
            raise
        raise lost from error
    finally:
        if lock is not None:
            lock.release()
    stop()  # a rank that fails does not wait for the others: launcher/command.py ends it
    return report


def _train(
    config: RunConfig,
    prepared: Prepared,
    ranks: Ranks,
    above: Sequence[Launcher],
    original: Original | None,
) -> dict[str, Any] | None:
    identity, checkpoint, remarks = _start_point(config, prepared, ranks, original)
    initial = None
    if checkpoint is None:
        initial, unsealed = agreed(
            ranks, lambda: _initial_adapter(config, prepared, identity["base"])
        )
        remarks += unsealed
    too_large = "while the model was loaded; launcher/plan.py says what fits"
    with memory_errors_named(too_large), step("building the model"):
        session = _build(config, prepared, ranks, identity, checkpoint, initial)
    request = StopRequest(ranks, above)
    watchdog = Watchdog(
        config.engine.timeout_seconds,
        config.log.interval + WARM_UP,
        lambda what: end_hung(what, ranks),
    )
    run, state = session.run, session.state
    try:
        run.say(*remarks)
        if original is not None and session.passport is not None:
            run.say(*original.differences(session.passport.facts))
        if checkpoint is not None:
            session.restore(checkpoint)
            run.say(
                f"continues after step {state.step} from {checkpoint.path}", _left_line(session)
            )
        try:
            with memory_errors_named("while scoring"):
                if checkpoint is None:
                    line = "stopped before the first step; the same command starts again"
                    with request.between_batches(run.engine, line):
                        session.evaluation.begin()
                train(session, request, watchdog)
                line = "stopped before the report; all is saved, the same command goes on with it"
                with request.between_batches(run.engine, line):
                    report = session.finish()
        except MemoryExceededError as error:
            raise explained(error, session) from error
        run.say(*peak_lines(session))
    finally:
        watchdog.close()
        request.restore()
        if run.log is not None:
            run.log.close()
    if report is not None:
        print_report(report)
        if original is not None:
            print_lines(original.outcome(config.output_dir, report["predictors"]["model"]))
        print_lines(ending_lines(config))
    return report


def _start_point(
    config: RunConfig, prepared: Prepared, ranks: Ranks, original: Original | None
) -> tuple[dict[str, str], Checkpoint | None, list[str]]:
    """Digests of base and data, the checkpoint to continue, and remarks."""
    if config.is_language:
        agreed(ranks, lambda: run_prompts(config, prepared))  # faults first, then the model
    identity = agreed(ranks, lambda: run_identity(config, prepared))
    if not is_equal_everywhere(str(identity), ranks):
        raise MachineError("ranks read different data or models; give every node the same files")
    if original is not None:
        original.refuse_other(identity)
    checkpoint, remarks = agreed(ranks, lambda: find_checkpoint(config))
    if not is_equal_everywhere(str(checkpoint and checkpoint.trainer), ranks):
        raise MachineError(
            f"ranks find different checkpoints: all nodes must share {config.output_dir}"
        )
    if checkpoint is not None:
        remarks += refuse_other_run(checkpoint, config, identity)
        remarks += moved_lines(checkpoint, ranks.world_size)
    return identity, checkpoint, remarks


def _build(
    config: RunConfig,
    prepared: Prepared,
    ranks: Ranks,
    identity: dict[str, Any],
    checkpoint: Checkpoint | None,
    initial: Path | None,
) -> Session:
    """Everything up to the first step, with the banner and the proof of its strategy."""
    state = initial_state(config, checkpoint)
    classes = prepared.classes
    recipe = _resolve(config, ranks, classes, checkpoint)
    counted = config.changed("optim", micro_batch_size=recipe.config.optim.micro_rows)
    loader = build_loader(counted, prepared, ranks, checkpoint)
    total_steps = max(state.step, _total_steps(config.optim, loader))
    model = run_model(recipe, classes, ranks, initial, loader.examples)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    settings = deepspeed_config(recipe.config, num_trained, ranks.world_size)

    def open_log() -> RunLog | None:
        if not ranks.is_main:
            return None
        folder = config.output_dir
        write_yaml(folder / RECIPE, config.to_json())  # which starts the same run again
        write_json(folder / "ds_config.json", settings)
        write_json(folder / DATA, prepared.facts | {"remarks": remark_lines(prepared)})
        return RunLog(folder, config.log, state, total_steps, config.flat())

    log = agreed(ranks, open_log)
    if log is not None:
        log.say(*banner_lines(recipe, ranks, model, prepared, loader, total_steps))
        log.say(*start_lines(recipe.config))
    engine = build_engine(model, recipe.config, settings)
    detached = config.replication.detach_modulator
    task = TASKS[config.task.name](config.loss, ranks.device, detached, loader.examples)
    run = Run(config, ranks, engine, task, loader, total_steps, log)
    evaluation = evaluation_of(config.task.name, prepared.classes)(
        counted, prepared, ranks, engine, log, task
    )
    session = Session(run, prepared, model, recipe, identity, state, evaluation)
    _choose_strategy(session)

    def open_papers() -> Passport | None:
        if log is None:
            return None
        passport, damaged = open_passport(session.recipe, ranks, identity, state.step)
        passport.write(state.step)
        log.say(write_plan(session), *log.tracker_lines, *damaged)
        return passport

    session.passport = agreed(ranks, open_papers)
    run.say(time_line(_estimate_seconds(session)))
    return session


def _resolve(
    config: RunConfig, ranks: Ranks, classes: Classes, checkpoint: Checkpoint | None
) -> Resolved:
    """The recipe on this machine, the same on every rank and as at the start of the run."""
    recipe = agreed(ranks, lambda: resolve_here(config, ranks.device, ranks.world_size, classes))
    if not is_equal_everywhere(str([recipe.choice(key) for key in recipe.reasons]), ranks):
        engine = recipe.config.engine
        raise MachineError(
            f"ranks would choose differently, this one {engine.preset} and {engine.precision}:"
            " set engine.preset, engine.precision, model.attention and optim.micro_batch_size, or"
            " take nodes of one kind"
        )
    if rows := kept_rows(config, checkpoint, ranks.world_size):
        recipe = recipe.settled("optim", "micro_batch_size", rows, "auto, as since its start")
    return recipe


def _total_steps(optim: OptimSection, loader: TrainLoader) -> int:
    steps_per_epoch = loader.plan.steps_per_epoch
    whole = optim.max_steps or (optim.epochs or 0) * steps_per_epoch
    if optim.warmup_steps > whole:
        raise ConfigError(
            f"optim.warmup_steps {optim.warmup_steps} is above the run's {whole} steps"
            f" ({steps_per_epoch} an epoch x {optim.epochs} epochs); lower it"
        )
    return optim.max_steps or loader.steps_until(optim.epochs or 0)


def _left_line(session: Session) -> str:
    """Where in the data a run goes on, and how much is left of it."""
    run, step, optim = session.run, session.state.step, session.run.config.optim
    if session.early_stop:
        return "nothing is left to train; raise eval.patience to train longer"
    if step == run.total_steps:
        wanted = f"{optim.max_steps} steps" if optim.max_steps else f"{optim.epochs} epochs"
        return (
            f"nothing is left to train: the checkpoint has {step} steps,"
            f" {run.loader.epochs_done(step):.6g} epochs, and the recipe wants {wanted};"
            " raise optim.epochs or optim.max_steps to train longer"
        )
    done, records = run.loader.records_done(step)
    return (
        f"continues in epoch {run.loader.position(step).epoch + 1} after {done:,.6g} of"
        f" {records:,.6g} examples; {run.total_steps - step:,} steps are left"
    )


def _initial_adapter(
    config: RunConfig, prepared: Prepared, base_sha256: str
) -> tuple[Path | None, list[str]]:
    """The folder of tuning.init_from, and a line if nothing says what its bytes were.

    Without focaltune.json it is a PEFT folder that somebody has made of ours, or another's.
    """
    start_from, method = config.tuning.init_from, config.tuning.method
    if start_from is None:
        return None, []
    classes = None if config.is_language else prepared.classes
    folder = adapter_folder(Path(start_from), base_sha256, method, classes)
    if (folder / FACTS).is_file() and verify(folder, "copy it again, or train it again"):
        return folder, []
    has = MANIFEST if (folder / FACTS).is_file() else FACTS
    return folder, [f"tuning.init_from {folder} has no {has}: its weights are not verified"]


def build_loader(
    config: RunConfig, prepared: Prepared, ranks: Ranks, checkpoint: Checkpoint | None = None
) -> TrainLoader:
    """The steps of the training split for this rank, from the row where a checkpoint was written.

    Raises:
        ConfigError: A batch of rows that the ranks cannot share out evenly.
    """
    optim = config.optim
    taken = optim.micro_rows * ranks.world_size
    if optim.batch_unit == "rows" and optim.global_batch_size % taken:
        raise ConfigError(
            f"optim.global_batch_size {optim.global_batch_size} rows is not a multiple of"
            f" {optim.micro_rows} rows a micro-batch x {ranks.world_size} ranks = {taken};"
            f" take {max(1, optim.global_batch_size // taken) * taken}"
        )

    def beginning(start: Start) -> TrainLoader:
        packing, world_size = config.data.packing, ranks.world_size
        return training_loader(
            config, prepared, ranks.rank, world_size, packing=packing, start=start
        )

    if checkpoint is None:
        return beginning(Start())
    loader = beginning(Start(**checkpoint.trainer.get("start", {})))
    before = replace(loader.batching, **batches_of(checkpoint))
    if before == loader.batching:
        return loader
    old = TrainLoader(
        loader.examples, before, files=loader.files, start=loader.start, times_N=loader.times_N
    )
    return beginning(old.position(checkpoint.step))


def _choose_strategy(session: Session) -> None:
    """Keep records apart in a way that is proved on this model and machine, before any step."""
    run = session.run
    run.engine.eval()
    settings, device = proof_settings(session.recipe), run.ranks.device
    run.say(*choose_strategy(run.engine, session.model, run.loader.examples, settings, device))
    attention = session.model.strategy.attention
    settled = session.recipe.config.changed("model", attention=attention)
    session.recipe = replace(session.recipe, config=settled)


def _estimate_seconds(session: Session) -> float:
    """Time a forward pass, the faster of two; training costs three (forward, backward twice)."""
    run, steps_left = session.run, max(0, session.run.total_steps - session.state.step)
    if not steps_left:
        return 0.0
    run.engine.eval()
    batch = run.loader.step(session.state.step).micro_batches[0].to(run.ranks.device)
    seconds = []
    for _ in range(2):  # the first compiles kernels
        started = time.perf_counter()
        with torch.no_grad():
            float(run.engine(batch).sum())  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 3 * min(seconds) * run.loader.plan.gradient_accumulation_steps * steps_left
