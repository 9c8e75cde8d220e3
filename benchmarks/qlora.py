"""QLoRA and LoRA on a base of 50 million random parameters, and the time a quantised cache saves.

    python benchmarks/qlora.py --folder NEW_FOLDER [--steps 24]

Trains both on the same functions in the same order, by launcher/train.py, and writes curves.png and
result.json: losses, tensor bytes of the base, seconds a step. Then starts a larger base (239 M)
three times: quantised from its files, into the cache, and from the cache.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.runs import BIG_CODE, QUICKSTART, REPOSITORY, SAMPLES, write_model

TRAINED = BIG_CODE | {"n_embd": 640, "n_layer": 12, "n_head": 10, "n_inner": 2560}
STARTED = BIG_CODE | {"n_embd": 1280, "n_layer": 14, "n_head": 10, "n_inner": 5120}
METHODS: dict[str, list[str]] = {
    "LoRA, fp32": [],
    "QLoRA, NF4": ["tuning.method=qlora"],
    "QLoRA, NF4, 8-bit AdamW": ["tuning.method=qlora", "optim.optimizer=adamw_8bit"],
    "QLoRA, bare FP4": [
        "tuning.method=qlora", "tuning.quant_type=fp4", "tuning.double_quant=false"
    ],
}  # fmt: skip


def write_data(folder: Path) -> Path:
    """Eight short training functions, the batch of every step, and 20 each for validation and test.

    A random base knows no code, so 24 steps can only teach it functions by heart. The curves show
    whether the loss falls, and how alike the methods are.
    """
    folder.mkdir(parents=True)
    for split, count in (("train", 8), ("valid", 20), ("test", 20)):
        with gzip.open(SAMPLES / f"{split}.jsonl.gz", "rt", encoding="utf-8") as stream:
            rows = [line for line in stream if len(json.loads(line)["code"]) <= 700][:count]
        (folder / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


def train(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Train with one method; its losses, measured weights and time of a step."""
    run = folder / name.replace(", ", "-").replace(" ", "-")
    keys = [
        f"run.output_dir={run}", "model.path=null", f"model.config={folder / 'model'}",
        f"data.path={folder / 'data'}", f"data.cache_dir={folder / 'cache'}", "data.seq_length=512",
        "optim.epochs=null", f"optim.max_steps={steps}", "optim.warmup_steps=5", "optim.lr=2e-4",
        "optim.schedule=constant", "optim.max_grad_norm=1", "optim.global_batch_size=8",
        "optim.micro_batch_size=1", "eval.interval=never", "save.interval=1000", "log.interval=1",
        *METHODS[name],
    ]  # fmt: skip
    command = [sys.executable, "launcher/train.py", "recipes/quickstart.yaml", *keys]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if row["kind"] == "train"]
    state = json.loads(next(run.glob("checkpoints/*/trainer.json")).read_text())["state"]
    [memory] = [line for line in done.stderr.splitlines() if "  memory  " in line]
    return {
        "losses": losses,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds_a_step": state["train_seconds"] / steps,
        "weights_gib": float(memory.split("measured ")[1].split(" ")[0]),
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """All curves in one plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    for name, result in results.items():
        losses = result["losses"]
        axes.plot(range(1, len(losses) + 1), losses, label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("focal loss")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def start_seconds(folder: Path) -> dict[str, float]:
    """Seconds until a model is ready to train: without a cache, filling it, and from it."""
    import torch

    from trainer.config.recipe import load_run_config
    from trainer.run.build import build_model, resolve_here, write_random_base

    base = write_model(folder / "started", STARTED)
    keys = [
        f"run.output_dir={folder / 'start'}", f"model.config={base}", "tuning.method=qlora",
        "model.path=null",
    ]  # fmt: skip
    cache = folder / "quantized"
    config = load_run_config(QUICKSTART, keys)
    device = torch.device("cpu")
    (folder / "start").mkdir()
    write_random_base(resolve_here(config, device).config)
    seconds = {}
    for name, more in (
        ("warm-up", []),
        ("no cache", []),
        ("first start, filling the cache", [f"model.quantize_cache={cache}"]),
        ("second start, from the cache", [f"model.quantize_cache={cache}"]),
    ):
        config = resolve_here(load_run_config(QUICKSTART, [*keys, *more]), device).config
        started = time.perf_counter()
        build_model(config)
        seconds[name] = time.perf_counter() - started
    return {name: value for name, value in seconds.items() if name != "warm-up"}


def main() -> None:
    """Measure, draw and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new folder")
    parser.add_argument("--steps", type=int, default=24)
    given = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    folder = given.folder.resolve()
    write_model(folder / "model", TRAINED)
    write_data(folder / "data")
    results = {}
    for name in METHODS:
        results[name] = train(name, folder, given.steps)
        values = {k: round(v, 4) for k, v in results[name].items() if k != "losses"}
        print(name, values, flush=True)
    draw(results, folder / "curves.png")
    seconds = start_seconds(folder)
    print(seconds)
    result = {"curves": results, "start_seconds": seconds, "steps": given.steps}
    (folder / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
