"""Losses and gradient norms of the first steps are those in tests/golden/losses.json.

Equal to the last digit on the kind of machine that recorded them; elsewhere within what another
order of sums does to eight fp32 steps. `make golden` records them anew: a change of arithmetic that
is meant says so in CHANGELOG.md.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY
from rank_pool import run_ranks

GOLDEN = REPOSITORY / "tests" / "golden"
RECORDED = GOLDEN / "losses.json"
# Largest relative difference over ATEN_CPU_CAPABILITY=default, avx2 and avx512: 2.4e-6 in a loss,
# 8.5e-6 in a norm. A wrong divisor, mask or learning rate is off by more than 1e-3.
ROUNDING = 5e-5
STEPS = 8
_IDS = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 320, "initializer_range": 0.2}
MODELS = {
    "gpt_bigcode": _IDS
    | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 512}
    | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": _IDS
    | {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
}
FUNCTIONS = {split: str(GOLDEN / f"{split}.jsonl") for split in ("train", "valid", "test")}
QUESTIONS = {
    split: str(GOLDEN / f"questions_{split}.jsonl") for split in ("train", "valid", "test")
}
RECIPES: dict[str, dict[str, Any]] = {
    "classification": {
        "data": FUNCTIONS,
        "tuning": {"lora_r": 4, "lora_dropout": 0.0},
        "loss": {"gamma": 2.0, "alpha": [0.4, 0.6]},
    },
    "instruction": {
        "task": {"name": "instruction"},
        "data": QUESTIONS,
        "tuning": {"method": "full"},
    },
    "qlora": {
        "data": FUNCTIONS,
        "tuning": {"method": "qlora", "lora_r": 16, "lora_dropout": 0.0},
    },
}
FAMILY = {"classification": "gpt_bigcode", "instruction": "llama", "qlora": "gpt_bigcode"}


def machine() -> dict[str, str]:
    """What decides the last digit."""
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    keys = ("cpu family", "model", "model name", "flags")
    cpu = [line for line in first.splitlines() if line.partition("\t")[0].strip() in keys]
    return {
        "cpu": hashlib.sha256("".join(cpu).encode()).hexdigest()[:16],
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def golden_recipe(name: str, folder: Path) -> dict[str, Any]:
    """A recipe over the files here; its model's configuration is written into the folder."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    values = MODELS[FAMILY[name]] | {"model_type": FAMILY[name]}
    (model / "config.json").write_text(json.dumps(values))
    (model / "tokenizer.json").write_bytes((GOLDEN / "tokenizer.json").read_bytes())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    recipe: dict[str, Any] = {
        "run": {"output_dir": str(folder / "run"), "seed": 3},
        "model": {"config": str(model), "attention": "sdpa"},
        "optim": {"lr": 1e-2, "warmup_steps": 2, "max_steps": STEPS, "global_batch_size": 12}
        | {"weight_decay": 0.01},
        "engine": {"precision": "fp32", "preset": "cpu_zero1"},
        "eval": {"interval": "never"},
        "log": {"interval": 1, "progress": False, "trackers": []},
    }
    recipe |= RECIPES[name]
    recipe["data"] = recipe["data"] | {"seq_length": 384, "cache_dir": str(folder / "cache")}
    return recipe


def losses_of(name: str, world_size: int, folder: Path) -> dict[str, list[float]]:
    """Loss and gradient norm of every step."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(golden_recipe(name, folder)))
    codes = run_ranks([str(path)], world_size, folder / "printed.txt")
    assert codes == [0] * world_size, (folder / "printed.txt").read_text()[-3000:]
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if "grad_norm" in row]
    return {key: [row[key] for row in steps] for key in ("loss", "grad_norm")}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_the_first_steps_are_the_recorded_ones(name, world_size, tmp_path):
    recorded = json.loads(RECORDED.read_text())
    found = losses_of(name, world_size, tmp_path)
    expected = recorded[f"{name}, {world_size} ranks"]
    assert len(found["loss"]) == STEPS
    assert len(set(found["loss"])) == STEPS  # a run that does not move would prove nothing
    if machine() == recorded["machine"]:
        assert found == expected
    for key in expected:
        assert found[key] == pytest.approx(expected[key], rel=ROUNDING)


def record() -> None:
    """Write losses.json from this machine."""
    values: dict[str, Any] = {"machine": machine()}
    for name in RECIPES:
        for world_size in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                found = losses_of(name, world_size, Path(folder))
            values[f"{name}, {world_size} ranks"] = found
    RECORDED.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    record()
    sys.exit(0)
