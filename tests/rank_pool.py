"""Run the real program on N ranks in forked processes: the heavy imports are paid once.

A forkserver imports torch, DeepSpeed and PEFT, and forks a process for every rank. Starting a
launcher costs 11-19 s, this 1-2 s.
"""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from launched import free_port

_PRELOAD = ["tests.rank_warm"]  # by its folder: the server does not look into tests/
Entry = Callable[[list[str]], int]
TIMEOUT = 240.0  # seconds; a hang, not a slow machine


def start_ranks(
    arguments: Sequence[str],
    world_size: int = 1,
    output: Path | None = None,
    *,
    allow_fp16: bool = False,
    entry: Entry | None = None,
    draws: bool = False,
) -> list[BaseProcess]:
    """Start `launcher/train.py ARGUMENTS` on world_size ranks and return at once.

    Args:
        arguments: Recipe and overrides.
        world_size: Ranks on this machine.
        output: File that takes what the ranks print.
        allow_fp16: Let DeepSpeed run fp16 on a CPU, which it refuses because it is slow: the
            arithmetic of the loss scale is the same.
        entry: Called instead of launcher.train.main; importable by name.
        draws: Draw the pictures of the report and write its page, a tenth of a tiny run's time. A
            fault of the page ends no run, so only a test that reads it proves it.
    """
    context = _context()
    port = free_port()
    ranks = [
        context.Process(
            target=_run_rank,
            args=(list(arguments), rank, world_size, port, output, allow_fp16, entry, draws),
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def _context() -> BaseContext:
    """Forked ranks; spawned ones where a GPU is seen: DeepSpeed asks CUDA where it is imported, and
    a process that has asked cannot fork others that use it.
    """
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def wait_ranks(ranks: Sequence[BaseProcess], timeout: float = TIMEOUT) -> list[int]:
    """Exit codes; a rank that does not end in time is killed and fails the test."""
    for process in ranks:
        process.join(timeout)
    stuck = [process.pid for process in ranks if process.is_alive()]
    for process in ranks:
        if process.is_alive():
            process.kill()
            process.join()
    assert not stuck, f"ranks {stuck} did not end within {timeout} s"
    return [process.exitcode or 0 for process in ranks]


def run_ranks(
    arguments: Sequence[str],
    world_size: int = 1,
    output: Path | None = None,
    *,
    allow_fp16: bool = False,
    entry: Entry | None = None,
    draws: bool = False,
) -> list[int]:
    """Run to the end; the exit code of every rank."""
    ranks = start_ranks(
        arguments, world_size, output, allow_fp16=allow_fp16, entry=entry, draws=draws
    )
    return wait_ranks(ranks)


def _run_rank(
    arguments: list[str],
    rank: int,
    world_size: int,
    port: int,
    output: Path | None,
    allow_fp16: bool,
    entry: Entry | None,
    draws: bool,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    if output is not None:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    from launcher.train import main
    from trainer.evaluation.functions import class_evaluation, report
    from trainer.evaluation.language import report as language_report
    from trainer.run import banner

    if not draws:
        for module in (class_evaluation, report, language_report):
            for name in [name for name in vars(module) if name.endswith("_svg")]:
                setattr(module, name, lambda *_: b"")
        banner.page_line = lambda *_: "page    was not wanted"
    if allow_fp16:
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    try:
        code = (entry or main)(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)
