"""Every recipe is sound and takes three steps with a tiny model of its family."""

import json

import pytest
import torch
import transformers
from conftest import REPOSITORY
from rank_pool import run_ranks
from recipe_cases import (
    LANGUAGE,
    PUBLISHED_SETS,
    RECIPES,
    RECORDS,
    REPLICATION,
    header,
    kind,
    plan_words,
    shape_file,
    values_of,
    write_model,
    write_records,
)

from launcher.plan import main as plan_main
from trainer.architectures.families import model_shape
from trainer.config.recipe import load_run_config
from trainer.run_folder.metrics import read_log
from trainer.tuning import METHODS

# Of those that repeat themselves for every dataset, length or size, one recipe of each kind.
FUNCTIONS = sorted(
    RECIPES / f"{name}.yaml" for name in ("quickstart", "vuln_java_lora", "own_functions_lora")
)
FUNCTIONS += sorted({kind(path): path for path in REPLICATION}.values())
TALKS = [RECIPES / "base.yaml", RECIPES / "instruction_sample.yaml"]
TALKS += sorted({kind(path): path for path in reversed(LANGUAGE)}.values())
PLANNED = [*REPLICATION, *LANGUAGE]
SHARED = REPOSITORY.parent / "shared" / "data"
ARCHIVE = SHARED / "vul_java_x1_without_p3" / "java_k_1_strict_2023_07_03.tar.gz"
TOKENIZER = SHARED / "tokenizers" / "starcoder1_recovered"

# What a three-step run changes in any recipe.
THREE_STEPS = [
    "data.seq_length=512", "optim.epochs=null", "optim.max_steps=3", "optim.warmup_steps=1",
    "log.interval=1",
]  # fmt: skip


def test_every_recipe_is_run_planned_or_like_one_that_is():
    every = set(RECIPES.rglob("*.yaml"))
    assert every == {*FUNCTIONS, *TALKS, *PLANNED, *PUBLISHED_SETS}
    assert len(every) > 30


@pytest.mark.parametrize("recipe", FUNCTIONS, ids=lambda path: path.stem)
def test_recipe_is_short_and_takes_three_steps(recipe, tiny_data, tiny_model, tmp_path):
    overrides = [f"data.path={tiny_data}", *THREE_STEPS]
    if "paged" in recipe.read_text():  # there is no GPU to page from
        overrides.append("optim.optimizer=adamw_8bit")
    if "path" not in (values_of(recipe).get("model") or {}):
        overrides.append(f"model.config={tiny_model}")
    check_three_steps(recipe, overrides, tmp_path)


@pytest.mark.parametrize("recipe", TALKS, ids=lambda path: path.stem)
def test_language_recipe_is_short_and_takes_three_steps(recipe, tiny_model, tmp_path):
    records = RECORDS[recipe.stem.partition("_")[0]]
    overrides = ["eval.prompts=[hello]", *write_records(tmp_path / "data", records)]
    if recipe in LANGUAGE:
        tiny_model = write_model(tmp_path / "model", shape_file(recipe))
    overrides += ["model.path=null", f"model.config={tiny_model}"]
    check_three_steps(recipe, [*overrides, *THREE_STEPS], tmp_path)
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["splits"]["train"]["kinds"] == [records]
    if records == "text":
        names = [file["name"] for file in facts["splits"]["train"]["files"]]
        assert names == ["part1.json", "part2.json", "part10.json"]


def check_three_steps(recipe, overrides, folder):
    """A header, few lines, and a run of three steps with losses."""
    lines = recipe.read_text().splitlines()
    assert lines[0].startswith("#")  # what it is for and how to start it
    assert len(lines) <= 45
    command = [str(recipe), f"run.output_dir={folder / 'run'}", *overrides]
    printed = folder / "printed"
    assert run_ranks(command, 1, printed) == [0], printed.read_text()[-2000:]
    assert len(read_log(folder / "run" / "log.jsonl")) == 3


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
        name: (split["tokens"]["num_functions"], split["tokens"]["class_counts"][1])
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


def planned(recipe, capsys):
    """What launcher/plan.py says on the machine of the header."""
    data = f"data.path={REPOSITORY / 'data' / 'samples'}"
    assert plan_main([str(recipe), *plan_words(recipe), data, "--json"]) == 0, (
        capsys.readouterr().err
    )
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    return plan


@pytest.mark.parametrize("recipe", REPLICATION, ids=lambda path: path.stem)
def test_a_replication_fits_its_hardware_and_states_what_was_reported(recipe, capsys):
    planned(recipe, capsys)
    lines = header(recipe)
    assert any("ROC AUC 0." in line and "F1 0." in line for line in lines)
    assert any("steps" in line for line in lines)
    assert len(recipe.read_text().splitlines()) <= 45


@pytest.mark.parametrize("recipe", LANGUAGE, ids=lambda path: path.stem)
def test_a_language_recipe_fits_its_hardware_and_trains_what_the_model_counts(recipe, capsys):
    text = "\n".join(header(recipe))
    assert f"launcher/train.py {recipe.relative_to(REPOSITORY)}" in text
    assert all(word in text for word in ("# Machine: ", "Hours: ", "# Settings: ", "# Expect: "))
    plan = planned(recipe, capsys)
    config = load_run_config(recipe, [plan_words(recipe)[-1]])
    model = METHODS[config.tuning.method](on_meta_device(shape_file(recipe)), config.tuning)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan["num_trained"] == trained > 0


# As published, tied output layers counted once; StarCoderBase by Astraios (Zhuo et al. 2024).
PUBLISHED = {
    "gpt2": 124_439_808, "llama_7b": 6_738_415_616, "llama_13b": 13_015_864_320,
    "qwen2_5_coder_7b": 7_615_616_512, "starcoderbase_1b": 1_137_207_296,
    "starcoderbase_3b": 3_043_311_104, "starcoderbase_7b": 7_327_263_232,
    "starcoder_15b": 15_517_456_384,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_parameters_of_the_published_model(name):
    path = RECIPES / f"{name}.json"
    model = on_meta_device(path)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    shape = model_shape(json.loads(path.read_text()), is_language=True)
    assert shape.num_parameters == PUBLISHED[name]


def on_meta_device(path):
    """A language model without weights, of a config.json."""
    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def test_the_replication_has_a_recipe_and_a_corrected_one_for_every_row():
    names = [path.stem for path in REPLICATION]
    corrected = [name for name in names if name.endswith("_corrected")]
    assert len(corrected) == 8
    assert len([name for name in names if name.endswith("_bare_fp4")]) == 6
    assert len([name for name in names if name.endswith("_published")]) == 2
    for name in corrected:
        stem = name.removesuffix("_corrected")
        assert {f"{stem}_bare_fp4", f"{stem}_published"} & set(names)


def test_the_recipe_for_own_functions_disarms_no_guard():
    config = load_run_config(
        RECIPES / "own_functions_lora.yaml", ["data.path=data/samples", "model.config=data/samples"]
    )
    assert not config.data.allow_leaks
    assert config.data.normalize_whitespace == "none"
    assert not config.data.max_bad_rows


def test_a_recipe_that_disarms_a_guard_says_why_on_the_line():
    lines = [line for path in RECIPES.glob("*.yaml") for line in path.read_text().splitlines()]
    odd = [line for line in lines if line.strip().startswith(("allow_leaks:", "normalize_whitesp"))]
    assert odd
    assert all("  # " in line for line in odd)
