"""QLoRA, fp16 masters and the planner's bytes on a GPU; skipped with the reason elsewhere."""

import json
import re

import pytest
import torch
from rank_pool import run_ranks

from trainer.run_folder.metrics import read_log

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
QLORA = ["tuning.method=qlora", "tuning.lora_r=16", "model.gradient_checkpointing=true"]


def run(recipe, folder, *overrides):
    printed = folder.with_suffix(".txt")
    command = [str(recipe), f"run.output_dir={folder}", *overrides]
    assert run_ranks(command, 1, printed) == [0], printed.read_text()[-3000:]
    return [row["loss"] for row in read_log(folder / "log.jsonl")], printed.read_text()


@pytest.mark.parametrize("quant_type", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("precision", ["fp16", "auto"])
def test_a_quantised_base_learns(quant_type, precision, tiny_recipe, tmp_path):
    overrides = [*QLORA, f"tuning.quant_type={quant_type}", f"engine.precision={precision}"]
    losses, _ = run(tiny_recipe, tmp_path / "run", *overrides)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_an_optimizer_of_bitsandbytes_learns_and_continues(optimizer, tiny_recipe, tmp_path):
    fixed = [*QLORA, f"optim.optimizer={optimizer}", "optim.schedule=constant"]
    whole, _ = run(tiny_recipe, tmp_path / "whole", *fixed)
    for steps in (3, 8):
        changed = [f"optim.max_steps={steps}", "run.accept_changes=true"]
        parts, _ = run(tiny_recipe, tmp_path / "parts", *fixed, *changed)
    assert parts == pytest.approx(whole, rel=2e-2)  # atomics add in any order
    assert parts[-1] < 0.5 * parts[0]


def test_fp16_masters_take_updates_below_fp16s_resolution(tiny_recipe, tmp_path):
    small = ["engine.precision=fp16", "optim.lr=1e-7", "optim.max_grad_norm=0"]
    run(tiny_recipe, tmp_path / "run", *small)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert all(row["loss_scale"] >= 1 for row in rows)
    assert all(row["grad_norm"] for row in rows[1:])


@pytest.mark.parametrize("more", [[], QLORA], ids=["lora", "qlora"])
def test_the_planned_peak_is_the_measured_one(more, tiny_recipe, tiny_model, tmp_path):
    """A model of 100 M parameters, so that a few MiB of cuBLAS do not count."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"n_embd": 1024, "n_layer": 8, "n_head": 16, "n_inner": 4096}
    (folder / "config.json").write_text(json.dumps(config | {"initializer_range": 0.02}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    keys = [f"model.config={folder}", "optim.lr=1e-4", "optim.max_steps=3", "eval.interval=never",
            "optim.micro_batch_size=4", *more]  # fmt: skip
    _, printed = run(tiny_recipe, tmp_path / "run", *keys)
    planned, measured = re.search(
        r"peak memory: planned ([\d.]+) GiB of tensors, measured ([\d.]+) GiB", printed
    ).groups()
    assert float(planned) == pytest.approx(float(measured), rel=0.15)
