"""A recipe becomes a RunConfig: defaults, overrides, the base of each path, the presets."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import MINIMAL, REPOSITORY
from pydantic import ValidationError

from trainer.config import preset as preset_module
from trainer.config.keys import choices, describe_keys
from trainer.config.preset import load_preset
from trainer.config.recipe import load_run_config
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError


def with_text(path: Path, text: str) -> Path:
    """The base recipe with more sections, written as YAML."""
    path.write_text(yaml.safe_dump(MINIMAL) + text)
    return path


def test_what_a_recipe_leaves_out_takes_the_default(base):
    config = load_run_config(base)
    assert (config.run.seed, config.run.resume) == (0, "auto")
    assert (config.optim.lr, config.optim.schedule, config.optim.max_steps) == (
        2e-4,
        "cosine",
        None,
    )
    assert (config.optim.micro_batch_size, config.optim.batch_unit) == (1, "examples")
    assert (config.tuning.lora_r, config.tuning.target_modules) == (8, "auto")
    assert (config.data.seq_length, config.data.packing) == (1024, True)
    assert (config.loss.gamma, config.loss.alpha, config.loss.group_weights) == (0.0, None, {})
    assert (config.save.keep, config.eval.interval) == (2, "epoch")


def test_every_key_is_described_for_help():
    lines, num_keys = describe_keys().splitlines(), 0
    for section, field in RunConfig.model_fields.items():
        for key, info in field.annotation.model_fields.items():
            assert info.description, f"{section}.{key}"
            [line] = [line for line in lines if line.startswith(f"  {section}.{key} = ")]
            assert line.endswith(f"  {info.description}")
            num_keys += 1
        assert any(line.startswith(f"{section}: ") for line in lines)
    assert num_keys > 50
    assert "  run.seed = 0  weights, order, dropout" in lines
    for beginning in (
        "  run.output_dir = (required)  ", "  optim.lr = 0.0002  ", "  data.fields = {}  ",
        "  engine.precision = auto {auto, fp32, bf16, fp16}  ", "  data.packing = true  ",
        "  eval.interval = epoch {epoch, never, N}  ", "  optim.epochs = null  ",
        '  log.trackers = ["tensorboard"] {tensorboard, wandb, mlflow}  ',
    ):  # fmt: skip
        assert sum(line.startswith(beginning) for line in lines) == 1, beginning
    assert choices(int | None) == []  # there is nothing to choose


def test_a_loaded_recipe_cannot_be_changed(base):
    with pytest.raises(ValidationError, match="frozen"):
        load_run_config(base).optim.lr = 1.0


def test_the_resolved_recipe_loads_to_the_same_values(base, tmp_path):
    config = load_run_config(base, ["loss.alpha=[0.3, 0.7]", "eval.interval=50"])
    again = tmp_path / "resolved.yaml"
    again.write_text(yaml.safe_dump(config.to_json()))
    assert load_run_config(again) == config


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1e-4", 1e-4),
        ("2.5E-3", 2.5e-3),
        ("1e0", 1.0),
        (".5e-2", 5e-3),
        ("+3e-4", 3e-4),
        ("1", 1.0),
    ],
)
def test_a_rate_in_scientific_notation_is_a_number(base, written, number):
    assert load_run_config(base, [f"optim.lr={written}"]).optim.lr == number
    with_text(base, f"tuning: {{lora_alpha: {written}}}\n")
    assert load_run_config(base).tuning.lora_alpha == number


@pytest.mark.parametrize("word", ["e5", "1e", "1e-4x", "cafe1e4", "1.e.4"])
def test_text_that_only_looks_like_a_number_stays_text(base, word):
    assert load_run_config(base, [f"data.end_token={word}"]).data.end_token == word


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optim.lr=1e-4", "optim", "lr", 1e-4),
        ("optim.max_grad_norm=0", "optim", "max_grad_norm", 0.0),
        ("data.packing=false", "data", "packing", False),
        ("data.end_token=</s>", "data", "end_token", "</s>"),
        ("data.end_token=a=b", "data", "end_token", "a=b"),
        ("data.fields={code: func}", "data", "fields", {"code": "func"}),
        (
            "tuning.target_modules=[q_proj, v_proj]",
            "tuning",
            "target_modules",
            ["q_proj", "v_proj"],
        ),
        ("loss.group_weights={FIXED: 0.5}", "loss", "group_weights", {"FIXED": 0.5}),
        ("save.interval=7", "save", "interval", 7),
    ],
)
def test_an_override_is_read_as_yaml(base, override, section, key, value):
    config = load_run_config(base, [override])
    assert getattr(getattr(config, section), key) == value
    assert getattr(getattr(load_run_config(base), section), key) != value


def test_an_override_stands_above_the_recipe_and_the_last_one_wins(base):
    with_text(base, "loss: {gamma: 1.0, backend: torch}\n")
    loss = load_run_config(base, ["loss.gamma=2", "loss.gamma=3"]).loss
    assert (loss.gamma, loss.backend) == (3.0, "torch")


def test_a_model_on_the_command_line_takes_the_place_of_the_other_source(base, tmp_path):
    (tmp_path / "other").mkdir()
    other, shape = f"model.path={tmp_path / 'other'}", f"model.config={tmp_path / 'other'}"
    weights = load_run_config(base, [other]).model
    assert (weights.path, weights.config) == (str(tmp_path / "other"), None)
    base.write_text(base.read_text().replace("config:", "path:"))
    drawn = load_run_config(base, [shape]).model
    assert (drawn.path, drawn.config) == (None, str(tmp_path / "other"))
    for both in ([other, shape], ["model.path=null"]):
        with pytest.raises(ConfigError, match="set exactly one of path"):
            load_run_config(base, both)


def test_epochs_of_a_recipe_give_way_to_steps_on_the_command_line_only_if_emptied(base):
    optim = load_run_config(base, ["optim.max_steps=5", "optim.epochs=null"]).optim
    assert (optim.epochs, optim.max_steps) == (None, 5)


def test_paths_of_a_recipe_start_at_the_repository_wherever_the_command_runs(
    base, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = load_run_config(base)
    assert config.output_dir == REPOSITORY / "runs" / "x"
    assert config.data.path == str(REPOSITORY / "data" / "samples")
    assert config.model_folder == REPOSITORY / "data" / "samples" / "model"


def test_paths_of_an_override_start_at_the_current_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("m", "tok"):
        (tmp_path / name).mkdir()
    config = load_run_config(
        base,
        ["run.output_dir=out", "data.train=../t.jsonl", "model.config=m", "data.tokenizer=tok"],
    )
    assert config.output_dir == tmp_path / "out"
    assert config.data.train == str(tmp_path.parent / "t.jsonl")
    assert config.model.config == str(tmp_path / "m")
    assert config.tokenizer_folder == tmp_path / "tok"
    assert config.data.path == str(REPOSITORY / "data" / "samples")  # still the recipe's


def test_the_home_folder_and_absolute_paths_are_understood(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_run_config(base, ["run.output_dir=~/runs", f"data.valid={tmp_path}/v.jsonl"])
    assert config.output_dir == tmp_path / "home" / "runs"
    assert config.data.valid == f"{tmp_path}/v.jsonl"


def test_resume_is_a_word_or_a_path(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in ("auto", "never"):
        assert load_run_config(base, [f"run.resume={word}"]).run.resume == word
    assert load_run_config(base, ["run.resume=c/step-5"]).run.resume == str(tmp_path / "c/step-5")
    with_text(base, "").write_text(base.read_text().replace("run:\n", "run:\n  resume: c\n"))
    assert load_run_config(base).run.resume == str(REPOSITORY / "c")


def test_the_tokenizer_is_the_models_unless_the_recipe_names_one(base):
    config = load_run_config(base, [f"model.config={REPOSITORY}/data/samples/model/config.json"])
    assert config.tokenizer_folder == config.model_folder == REPOSITORY / "data/samples/model"


PRESETS = sorted(path.stem for path in (REPOSITORY / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_holds_the_stage_of_its_name(name):
    stage = load_preset(name).stage
    assert f"zero{stage}" in name


def test_there_are_presets_for_processor_and_gpu_at_every_stage():
    wanted = {f"{machine}_zero{stage}" for machine in ("cpu", "gpu") for stage in range(4)}
    assert wanted <= set(PRESETS)


def test_a_preset_is_given_out_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(preset_module, "PRESET_FOLDER", tmp_path)
    preset = {"zero_optimization": {"stage": 2}, "communication_data_type": "fp32"}
    (tmp_path / "mine.json").write_text(json.dumps(preset))
    assert load_preset("mine").settings == preset


def test_zero_stage_0_runs_in_fp32(base):
    preset = "engine.preset=cpu_zero0"
    assert load_run_config(base, [preset, "engine.precision=fp32"]).engine.precision == "fp32"


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "auto"])
def test_fp32_adapters_stand_on_a_frozen_base_of_any_precision(base, dtype):
    config = load_run_config(base, ["engine.precision=fp32", f"model.dtype={dtype}"])
    assert config.model.dtype == dtype


def test_causal_lm_learns_whole_records_unless_the_recipe_says_otherwise(base):
    task = "task.name=causal_lm"
    data = load_run_config(base, [task]).data
    assert (data.supervise, data.long_functions) == ("all", "window")
    data = load_run_config(base, [task, "data.supervise=answers"]).data
    assert (data.supervise, data.long_functions) == ("answers", "window")
    data = load_run_config(base, ["task.name=instruction"]).data
    assert (data.supervise, data.long_functions) == ("answers", "truncate")
