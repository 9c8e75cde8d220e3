"""Every recipe is sound and takes three steps with a tiny model of its family."""

import json
from pathlib import Path

import pytest
import yaml
from rank_pool import run_ranks

from trainer.metrics import read_log
from trainer.recipe import load_run_config

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = sorted(REPOSITORY.glob("recipes/*.yaml"))
SHARED = REPOSITORY.parent / "shared" / "data"
ARCHIVE = SHARED / "vul_java_x1_without_p3" / "java_k_1_strict_2023_07_03.tar.gz"
TOKENIZER = SHARED / "tokenizers" / "starcoder1_recovered"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_short_and_takes_three_steps(recipe, tiny_data, tiny_model, tmp_path):
    lines = recipe.read_text().splitlines()
    assert lines[0].startswith("#")  # what it is for and how to start it
    assert len(lines) <= 45
    overrides = [
        f"run.output_dir={tmp_path / 'run'}", f"data.path={tiny_data}", "data.seq_length=512",
        "optim.epochs=null", "optim.max_steps=3", "optim.warmup_steps=1", "log.interval=1",
    ]  # fmt: skip
    if "path" not in (yaml.safe_load(recipe.read_text()).get("model") or {}):
        overrides.append(f"model.config={tiny_model}")
    assert run_ranks([str(recipe), *overrides], 1, tmp_path / "printed") == [0], (
        tmp_path / "printed"
    ).read_text()[-2000:]
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 3


def test_the_quickstart_is_the_embedded_sample():
    config = load_run_config(REPOSITORY / "recipes" / "quickstart.yaml")
    assert config.data.path == str(REPOSITORY / "data" / "samples")


@pytest.mark.skipif(not ARCHIVE.exists(), reason="the Java archive is not beside the repository")
@pytest.mark.parametrize("world_size", [1, 2])
def test_real_functions_train_and_the_report_states_the_known_baseline(world_size, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = [
        str(REPOSITORY / "recipes" / "vuln_java_lora.yaml"), f"run.output_dir={folder}",
        f"data.path={ARCHIVE}", f"data.tokenizer={TOKENIZER}",
        f"model.config={REPOSITORY / 'recipes' / 'small_gpt_bigcode.json'}",
        "data.seq_length=256", "optim.epochs=null", "optim.max_steps=2", "optim.warmup_steps=0",
        "optim.global_batch_size=16", "optim.micro_batch_size=4",
    ]  # fmt: skip
    assert run_ranks(command, world_size, printed) == [0] * world_size, printed.read_text()[-3000:]
    facts = json.loads((folder / "data.json").read_text())
    counted = {
        name: (split["tokens"]["num_functions"], split["tokens"]["num_positive"])
        for name, split in facts["splits"].items()
    }
    assert counted == {"train": (810, 403), "valid": (272, 139), "test": (252, 123)}
    train = facts["splits"]["train"]["tokens"]
    assert int(train["tokens_mean"]) == 396  # 396.54
    assert (train["tokens_median"], train["tokens_max"]) == (238, 3397)
    assert facts["sharing"]["shared_functions"]["train/test"] == 1
    report = json.loads((folder / "report" / "test.json").read_text())
    assert report["population"]["num"] == 252
    positive = report["predictors"]["always positive"]["metrics"]
    assert round(positive["f1"], 3) == 0.656
