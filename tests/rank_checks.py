"""Entry points for tests/rank_pool.py that look inside a run."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch


def count_optimizer_state(arguments: list[str]) -> int:
    """Train, then write the elements of Adam's moments that this rank holds to state-RANK.txt."""
    from launcher.train import main
    from trainer.engine.moments import optimizer_of
    from trainer.run.session import Session

    finish = Session.finish

    def counted_finish(session: Session) -> object:
        moments = [
            value
            for entry in optimizer_of(session.run.engine).state.values()
            for value in entry.values()
            if torch.is_tensor(value) and value.numel() > 1
        ]
        folder = Path(session.run.config.run.output_dir)
        count = sum(moment.numel() for moment in moments)
        (folder / f"state-{session.run.ranks.rank}.txt").write_text(str(count))
        return finish(session)

    Session.finish = counted_finish  # type: ignore[method-assign, assignment]
    return main(arguments)


def report_group_timeout(arguments: list[str]) -> int:
    """Print the timeout of the default group and of a new one, as ZeRO makes them."""
    from trainer.processes.distributed import start, stop

    start(int(arguments[0]))
    group = torch.distributed.new_group()
    for member in (torch.distributed.group.WORLD, group):
        assert member is not None
        backend = member._get_backend(torch.device("cpu"))
        seconds = backend.options._timeout.total_seconds()
        sys.stdout.write(f"timeout {seconds}\n")  # one write: ranks share the file
        sys.stdout.flush()
    stop()
    return 0


def report_listening(arguments: list[str]) -> int:
    """Print the addresses on which this rank listens once the ranks have talked to each other."""
    import psutil

    from trainer.processes.distributed import start, stop

    start(60)
    torch.distributed.barrier()
    connections = psutil.Process().net_connections(kind="inet")
    found = [one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN]
    sys.stdout.write(" ".join(["listening", *found]) + "\n")
    sys.stdout.flush()
    torch.distributed.barrier()
    stop()
    return 0


def run_out_of_memory(arguments: list[str]) -> int:
    """Train until the third step, where the device has no memory left."""
    from launcher.train import main
    from trainer.losses.tasks import Classification

    loss_sum, calls = Classification.loss_sum, []

    def failing_loss_sum(*given: object) -> object:
        calls.append(1)
        if len(calls) == 5:  # two micro-batches a step
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss_sum(*given)  # type: ignore[arg-type]

    Classification.loss_sum = failing_loss_sum  # type: ignore[method-assign, assignment]
    return main(arguments)


def run_unplanned(arguments: list[str]) -> int:
    """Train where the planner can neither build nor run the model without its values."""
    from launcher.train import main
    from trainer.architectures import meta_model

    def fails(*_: object) -> object:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    meta_model.model_class = fails  # type: ignore[assignment]
    return main(arguments)


POISONED = 7  # record of the training split


def read_poison(arguments: list[str]) -> int:
    """Train where one record gives a loss, or with POISON=gradient a gradient, that is NaN.

    What was read with it stands in poison.txt of the run folder.
    """
    from launcher.train import main
    from trainer.losses.loss import LossSum
    from trainer.losses.tasks import Classification

    loss_sum = Classification.loss_sum
    kind = "gradient" if "POISON=gradient" in arguments else "loss"
    folder = next(a.partition("=")[2] for a in arguments if a.startswith("run.output_dir="))

    def poisoned(task: Classification, forward: object, batch: object) -> LossSum:
        loss = loss_sum(task, forward, batch)  # type: ignore[arg-type]
        if POISONED not in batch.example_S:  # type: ignore[attr-defined]
            return loss
        read = batch.example_S.tolist()  # type: ignore[attr-defined]
        Path(folder, "poison.txt").write_text(f"{os.environ['RANK']} {read}")
        zero = (loss.sum - loss.sum.detach()).abs()
        poison = zero.sqrt() if kind == "gradient" else zero + float("nan")
        return replace(loss, sum=loss.sum + poison)

    Classification.loss_sum = poisoned  # type: ignore[method-assign, assignment]
    return main([argument for argument in arguments if not argument.startswith("POISON")])


def hang_at_step_six(arguments: list[str]) -> int:
    """Train until rank 1 sleeps for good."""
    from launcher.train import main
    from trainer.run import loop

    step = loop.optimizer_step

    def step_or_sleep(run: Any, batches: Any, number: int, rate: float) -> object:
        if number == 5 and run.ranks.rank == 1:
            sleep_for_good()
        return step(run, batches, number, rate)

    loop.optimizer_step = step_or_sleep  # type: ignore[assignment]
    return main(arguments)


def miss_the_meeting(arguments: list[str]) -> int:
    """Train on all ranks but rank 1, which never comes."""
    from launcher.train import main

    return 0 if os.environ["RANK"] == "1" else main(arguments)


def sleep_for_good() -> None:
    """A name to find in a stack."""
    time.sleep(1000)


def report_engine_timeouts(arguments: list[str]) -> int:
    """Train, then print the timeout of every process group there is."""
    from launcher.train import main
    from trainer.run.session import Session

    finish = Session.finish

    def reporting_finish(session: Session) -> object:
        groups = list(torch.distributed.distributed_c10d._world.pg_map)
        assert session.run.engine.optimizer.dp_process_group in groups
        for group in groups:
            seconds = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
            sys.stdout.write(f"timeout {seconds} of {len(groups)}\n")
        sys.stdout.flush()
        return finish(session)

    Session.finish = reporting_finish  # type: ignore[method-assign, assignment]
    return main(arguments)


def train_from_other_code(arguments: list[str]) -> int:
    """Train where rank 1 is on a machine of its own whose clone is of another commit."""
    import socket

    from launcher.train import main
    from trainer.cluster import facts

    if os.environ["RANK"] == "1":
        facts.code_digest = lambda: "another"
        facts.machine_id = lambda: "another"
        socket.gethostname = lambda: "rank-1"
    return main(arguments)


def gather_values(arguments: list[str]) -> int:
    """Print what every rank gets of every rank."""
    import json

    from trainer.processes.distributed import gather, start, stop

    ranks = start(60)
    everyone = gather({"rank": ranks.rank, "text": "ä" * ranks.rank}, ranks)
    sys.stdout.write(json.dumps(everyone) + "\n")
    sys.stdout.flush()
    stop()
    return 0


def record_rows_and_state(arguments: list[str]) -> int:
    """Train, and write what every rank reads to rows.txt and restores to state.txt.

    rows.txt: a line a step and rank, [step, rank, examples]. state.txt: a line a continuation, the
    number of tensors, or the first that is not bit for bit the checkpoint's.
    """
    import json

    from data.batches.loader import TrainLoader
    from launcher.train import main
    from trainer.engine.state import gathered_state
    from trainer.run.session import Session

    folder = Path(next(a.partition("=")[2] for a in arguments if a.startswith("run.output_dir=")))
    step, restore = TrainLoader.step, Session.restore

    def recording_step(loader: TrainLoader, number: int) -> object:
        batches = step(loader, number)
        read = [int(one) for batch in batches.micro_batches for one in batch.example_S]
        with (folder / "rows.txt").open("a") as file:
            file.write(json.dumps([number, loader.rank, read]) + "\n")
        return batches

    def checking_restore(session: Session, checkpoint: object) -> None:
        restore(session, checkpoint)  # type: ignore[arg-type]
        main_rank = session.run.ranks.is_main
        now = dict(gathered_state(session.run.engine, keep=True))
        if not main_rank:
            return
        saved = checkpoint.tensors()  # type: ignore[attr-defined]
        odd = [name for name in saved if not torch.equal(saved[name], now[name])]
        with (folder / "state.txt").open("a") as file:
            file.write(f"{odd[0] if odd else len(saved)}\n")

    TrainLoader.step = recording_step  # type: ignore[method-assign, assignment]
    Session.restore = checking_restore  # type: ignore[method-assign, assignment]
    return main(arguments)


def record_order(arguments: list[str]) -> int:
    """Train, then print when batches were made, a step was computed, and its numbers were read."""
    from data.batches.loader import TrainLoader
    from launcher.train import main
    from trainer.engine.finite import FiniteCheck
    from trainer.run import loop

    order: list[str] = []

    def noted(owner: object, name: str, letter: str) -> None:
        original = getattr(owner, name)

        def call(*given: object, **more: object) -> object:
            order.append(letter)
            return original(*given, **more)

        setattr(owner, name, call)

    noted(TrainLoader, "step", "b")
    noted(loop, "optimizer_step", "s")
    noted(FiniteCheck, "read", "r")
    code = main(arguments)
    print("order", "".join(order))
    return code


def clip_by_deepspeed(arguments: list[str]) -> int:
    """Train with DeepSpeed's clipping where ours takes its place."""
    from launcher.train import main
    from trainer.engine import engine

    engine.clips_before_update = lambda *_: False
    return main(arguments)


def count_waits(arguments: list[str]) -> int:
    """Train, and print who reads a tensor's values in the fourth step, and how often."""
    import traceback
    from collections import Counter

    from torch.utils._python_dispatch import TorchDispatchMode

    from launcher.train import main
    from trainer.run import loop

    waits: Counter[str] = Counter()
    asks = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique", "is_nonzero")
    is_on = False

    def note(what: str) -> None:
        if not is_on:
            return
        frames = traceback.extract_stack()[:-2]
        inside = ("/torch/", "rank_checks.py", "contextlib.py")
        last = [one for one in frames if not any(part in one.filename for part in inside)][-1]
        place = "/".join(Path(last.filename).parts[-2:])
        waits[f"{place}:{last.name} {what}"] += 1

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, given=(), more=None):  # type: ignore[no-untyped-def]
            name = function._schema.name.removeprefix("aten::")
            if name.startswith(asks) or (
                name.startswith("index") and any(
                    torch.is_tensor(one) and one.dtype == torch.bool
                    for one in (given[1] if isinstance(given[1], list | tuple) else ())
                )
            ):  # fmt: skip
                note(name)
            return function(*given, **(more or {}))

    for name in ("cpu", "numpy", "tolist"):
        original = getattr(torch.Tensor, name)

        def asked(tensor, *given, name=name, original=original, **more):  # type: ignore[no-untyped-def]
            note(name)
            return original(tensor, *given, **more)

        setattr(torch.Tensor, name, asked)
    own, seen, number = loop.optimizer_step, Seen(), 0

    def step(*given: object) -> object:
        nonlocal is_on, number
        number += 1
        if is_on:
            seen.__exit__(None, None, None)
        is_on = number == 4
        if is_on:
            seen.__enter__()
        return own(*given)  # type: ignore[arg-type]

    loop.optimizer_step = step  # type: ignore[assignment]
    code = main(arguments)
    assert number > 4
    lines = "".join(f"wait {count} {line}\n" for line, count in sorted(waits.items()))
    sys.stdout.flush()
    os.write(1, lines.encode())  # at once: ranks print into one file
    return code


def start_presets(arguments: list[str]) -> int:
    """Build an engine with each preset and update once; a line of JSON each.

    Arguments: a recipe, and names of presets with the precision of their GPUs, NAME:fp16.
    """
    import json

    from trainer.config.preset import load_preset
    from trainer.config.recipe import load_run_config
    from trainer.engine.engine import build_engine, deepspeed_config
    from trainer.processes.distributed import start, stop

    start(60)
    recipe, *names = arguments
    for one in names:
        name, _, precision = one.partition(":")
        config = load_run_config(Path(recipe), [])
        config = config.changed("engine", preset=name, precision=precision)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        settings = deepspeed_config(config, sum(p.numel() for p in model.parameters()))
        engine = build_engine(model, config, settings)
        x = torch.ones(4, 8, dtype=next(engine.module.parameters()).dtype)
        before = engine.module(x).float().detach().clone()
        loss = engine.module(x).float().square().sum() * 1e-3  # fp16's first scale is 2^16
        engine.backward(loss, scale_wrt_gas=False)
        engine.step()
        moved = float((engine.module(x).float().detach() - before).abs().max())
        zero = engine._config.zero_config.model_dump(mode="json", by_alias=True)
        wanted = load_preset(name)
        odd = [
            key for key, value in wanted.zero.items()
            if not isinstance(value, dict) and zero.get(key) != value
            and key not in ("reduce_bucket_size", "allgather_bucket_size")  # capped
        ]  # fmt: skip
        stage, sent = engine.zero_optimization_stage(), str(engine.communication_data_type)
        found = {"name": name, "moved": moved, "stage": stage, "odd": odd, "sent": sent}
        print(json.dumps(found), flush=True)
    stop()
    return 0


def train_in_small_chunks(arguments: list[str]) -> int:
    """Train with a tile of logits at a time, so that ranks score different numbers of chunks."""
    from launcher.train import main
    from trainer.kernels import chunks

    chunks.BUDGET_BYTES["cpu"] = 1
    return main(arguments)


def train_with_a_dead_layer(arguments: list[str]) -> int:
    """Train where the adapters of two layers are not part of the forward pass."""
    from launcher.train import main
    from trainer.run import training

    build = training.run_model

    def build_dead(*given: object, **more: object) -> torch.nn.Module:
        model = build(*given, **more)  # type: ignore[arg-type]
        for name, module in model.named_modules():
            if name.endswith(("h.0.attn.c_attn", "h.1.mlp.c_proj")):
                module.register_forward_hook(lambda layer, x, _: layer.base_layer(*x))
        return model

    training.run_model = build_dead  # type: ignore[assignment]
    return main(arguments)


def count_scored_batches(arguments: list[str]) -> int:
    """Train, then print how often each split was scored, and prompts were answered."""
    from collections import Counter

    from launcher.train import main
    from trainer.evaluation.language.evaluation import LanguageEvaluation
    from trainer.evaluation.scoring import Evaluation

    counts: Counter[str] = Counter()
    outputs, answers = Evaluation.outputs, LanguageEvaluation.answers

    def counted_outputs(evaluation: Evaluation, split: object) -> object:
        [name] = [
            n for n, one in evaluation.prepared.splits.items() if one.samples is split.samples
        ]
        counts[name] += 1
        return outputs(evaluation, split)  # type: ignore[arg-type]

    def counted_answers(evaluation: LanguageEvaluation) -> object:
        counts["answers"] += 1
        return answers(evaluation)

    Evaluation.outputs = counted_outputs  # type: ignore[method-assign, assignment]
    LanguageEvaluation.answers = counted_answers  # type: ignore[method-assign, assignment]
    code = main(arguments)
    print("scored", *(f"{name} {counts[name]}" for name in sorted(counts, reverse=True)))
    return code


def evaluate(arguments: list[str]) -> int:
    """Score files with a finished run."""
    from launcher.evaluate import main

    return main(arguments)
