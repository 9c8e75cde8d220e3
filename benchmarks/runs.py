"""The program's own run in processes of its own, one for each rank, for benchmarks of its steps."""

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.prepared.prepare import Prepared
    from trainer.config.sections import RunConfig
    from trainer.processes.distributed import Ranks
    from trainer.run.session import Run

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = REPOSITORY / "data" / "samples"
QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"
BIG_CODE = {"model_type": "gpt_bigcode", "activation_function": "gelu_pytorch_tanh",
            "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "vocab_size": 2048,
            "n_positions": 2048, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip


def write_model(folder: Path, shape: dict[str, Any]) -> Path:
    """config.json with the samples' tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((SAMPLES / "model" / name).read_bytes())
    return folder


def overrides_of(model: Path, folder: Path, keys: str) -> list[str]:
    """The quickstart recipe, with adapters alone, on a model; instructions for a language task."""
    language = [f"data.path={SAMPLES / 'instructions'}"] if "task.name=instruction" in keys else []
    return [
        "model.path=null", f"model.config={model}", f"data.cache_dir={folder / 'cache'}",
        f"run.output_dir={folder / 'run'}", "optim.global_batch_size=8",
        "optim.micro_batch_size=1", "optim.warmup_steps=0",
        *language, *keys.split(),
    ]  # fmt: skip


def on_forked_ranks(
    measure: Callable[..., dict[str, Any]],
    world_size: int,
    overrides: list[str],
    folder: Path,
    *arguments: Any,
) -> dict[str, Any]:
    """The result of measure(build, *arguments) on rank 0, where build(change) gives the run.

    `change` may change DeepSpeed's settings before the engine is built.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch.profiler", "deepspeed", "peft", "bitsandbytes", "trainer.run.training"]
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = folder / "measured.json"
    processes = []
    for rank in range(world_size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size,
                 "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port}  # fmt: skip
        call = (place, overrides, out, measure, arguments)
        processes.append(context.Process(target=_measure_rank, args=call))
        processes[-1].start()
    for process in processes:
        process.join()
    measured: dict[str, Any] = json.loads(out.read_text())
    return measured


def _measure_rank(
    place: dict[str, Any],
    overrides: list[str],
    out: Path,
    measure: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
) -> None:
    """Measure on one rank; rank 0 writes the result."""
    os.environ.update({name: str(value) for name, value in place.items()})
    from trainer.config.recipe import load_run_config
    from trainer.processes.distributed import start
    from trainer.run.preparation import prepare_run

    config = load_run_config(QUICKSTART, overrides)
    prepared, ranks = prepare_run(config), start(1800)
    result = measure(partial(_build_run, config, prepared, ranks), *arguments)
    if ranks.is_main:
        out.write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # the process group needs no farewell


def _build_run(
    config: "RunConfig",
    prepared: "Prepared",
    ranks: "Ranks",
    change: Callable[[dict[str, Any]], None] = lambda settings: None,
) -> "Run":
    """Model, engine and loader, as training builds them."""
    import torch

    from trainer.engine.engine import build_engine, deepspeed_config
    from trainer.losses.tasks import TASKS
    from trainer.models.proof import choose_strategy
    from trainer.run.build import build_model, proof_settings, resolve_here, write_random_base
    from trainer.run.session import Run
    from trainer.run.training import build_loader

    recipe = resolve_here(config, ranks.device, ranks.world_size)
    config = recipe.config
    if ranks.is_main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        write_random_base(config)
    torch.distributed.barrier()
    model = build_model(config)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    settings = deepspeed_config(config, num_trained, ranks.world_size)
    change(settings)
    engine = build_engine(model, config, settings)
    loader = build_loader(config, prepared, ranks)
    task = TASKS[config.task.name](config.loss, ranks.device, False, None)
    engine.eval()
    choose_strategy(engine, model, loader.examples, proof_settings(recipe), ranks.device)
    engine.train()
    return Run(config, ranks, engine, task, loader, 3, None)
