"""What torch.compile does with packed rows: programs it makes, seconds they take, losses.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py {mask,varlen} [--rows N] [--backend inductor]

The backbone of a small Llama under LoRA gets rows of the embedded functions, forward and backward,
first as it is, then compiled for dynamic shapes, then once more with the programs that are there.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.runs import QUICKSTART, SAMPLES

_LLAMA = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 2048, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip


def measure(way: str, num_rows: int, backend: str, folder: Path) -> dict[str, Any]:
    """Programs, breaks, seconds of each pass, and the largest difference of a loss."""
    from torch._dynamo.utils import counters

    from trainer.architectures.derived import backbone_of
    from trainer.config.recipe import load_run_config
    from trainer.losses.tasks import TASKS
    from trainer.models.packed_attention import Strategy
    from trainer.run.build import build_model, resolve_here
    from trainer.run.preparation import prepare_run, training_loader

    (folder / "config.json").write_text(json.dumps(_LLAMA))
    attention = "segment_sdpa" if way == "varlen" else "sdpa"
    keys = [
        "model.path=null", f"model.config={folder}", f"data.tokenizer={SAMPLES / 'model'}",
        "data.seq_length=512", "data.sample=512", "optim.micro_batch_size=1",
        "optim.global_batch_size=4", f"run.output_dir={folder / 'run'}",
        f"data.cache_dir={folder / 'cache'}", f"model.attention={attention}",
    ]  # fmt: skip
    config = load_run_config(QUICKSTART, keys)
    prepared, config = prepare_run(config), resolve_here(config, torch.device("cpu")).config
    loader = training_loader(config, prepared, packing=True)
    model = build_model(config)
    base: Any = model.model.get_base_model()
    base.set_attn_implementation(attention)
    model.strategy = Strategy(way, attention)
    model.train()
    task = TASKS["classification"](config.loss, torch.device("cpu"), False, None)
    steps = (loader.step(step).micro_batches for step in range(num_rows))
    batches = [batch for micro_batches in steps for batch in micro_batches][:num_rows]

    def run() -> tuple[list[float], float]:
        losses, started = [], time.perf_counter()
        for batch in batches:
            model.zero_grad()
            loss = task.loss_sum(model, batch).sum
            loss.backward()
            losses.append(float(loss.detach()))
        return losses, time.perf_counter() - started

    eager, eager_seconds = run()
    backbone: Any = backbone_of(base)
    backbone.forward = torch.compile(backbone.forward, backend=backend, dynamic=True)
    compiled, first_seconds = run()
    _, again_seconds = run()
    return {
        "rows": len(batches),
        "different_divisions": len({batch.segment_lengths for batch in batches}),
        "programs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "seconds": {"eager": eager_seconds, "first": first_seconds, "again": again_seconds},
        "largest_difference": max(abs(a - b) for a, b in zip(eager, compiled, strict=True)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("way", choices=["mask", "varlen"])
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--backend", default="aot_eager", choices=["aot_eager", "inductor"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(given.way, given.rows, given.backend, Path(place))))
