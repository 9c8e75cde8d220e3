"""Every recipe is sound and takes three steps with a tiny model of its family."""

import json
from pathlib import Path

import pytest
import yaml
from rank_pool import run_ranks

from launcher.plan import main as plan_main
from trainer.metrics import read_log
from trainer.recipe import load_run_config

REPOSITORY = Path(__file__).resolve().parents[1]
REPLICATION = sorted(REPOSITORY.glob("recipes/replication/*.yaml"))


def kind(recipe: Path) -> str:
    """What a recipe says besides the names, lengths and counts that a three-step run overrides."""
    values = yaml.safe_load(recipe.read_text())
    values["run"] = values["log"] = None
    values["data"].pop("seq_length", None)
    for key in ("max_steps", "epochs", "global_batch_size", "warmup_steps"):
        values["optim"].pop(key, None)
    return json.dumps(values, sort_keys=True)


# Of the replication, which repeats itself for every dataset and length, one recipe of each kind.
RECIPES = sorted(
    [*REPOSITORY.glob("recipes/*.yaml"), *{kind(path): path for path in REPLICATION}.values()]
)
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
    if "paged" in recipe.read_text():  # there is no GPU to page from
        overrides.append("optim.optimizer=adamw_8bit")
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


@pytest.mark.parametrize("recipe", REPLICATION, ids=lambda path: path.stem)
def test_a_replication_fits_its_hardware_and_states_what_was_reported(recipe, capsys):
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    [asked] = [line.removeprefix("# Plan: ") for line in header if line.startswith("# Plan: ")]
    arguments = [word.replace("=recipes", f"={REPOSITORY}/recipes") for word in asked.split()]
    data = f"data.path={REPOSITORY / 'data' / 'samples'}"
    assert plan_main([str(recipe), *arguments, data, "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["fits"]
    assert any("ROC AUC 0." in line and "F1 0." in line for line in header)
    assert any("steps" in line for line in header)
    assert len(recipe.read_text().splitlines()) <= 45


def test_the_replication_has_a_recipe_and_a_corrected_one_for_every_row():
    names = [path.stem for path in REPLICATION]
    corrected = [name for name in names if name.endswith("_corrected")]
    assert len(corrected) == 8
    assert len([name for name in names if name.endswith("_bare_fp4")]) == 6
    assert len([name for name in names if name.endswith("_published")]) == 2
    for name in corrected:
        stem = name.removesuffix("_corrected")
        assert {f"{stem}_bare_fp4", f"{stem}_published"} & set(names)
