"""Bad recipes, by the project's list of bad inputs: the number stands first in each test's id.

A refusal is a ConfigError (exit code 2) that names the key, what was found and what is allowed.
"""

import json
import os
from pathlib import Path

import pytest

from trainer.config import preset as preset_module
from trainer.config.preset import load_preset
from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run_config(recipe, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


REFUSED = {
    "82-nothing-to-train": ("tuning.target_modules=[]", "tuning.target_modules", "at least 1"),
    "53-misspelt-key": ("optim.lrr=1", "unknown key optim.lrr; did you mean 'lr'?"),
    "53-key-of-the-singular": ("optim.warmup_step=3", "did you mean 'warmup_steps'?"),
    "53-misspelt-section": ("optin.lr=1", "unknown key optin; did you mean 'optim'?"),
    "53-key-like-no-other": ("log.zzz=1", "unknown key log.zzz; allowed: ['interval', 'progress'"),
    "53-key-of-three-parts": ("optim.lr.peak=1", "unknown key optim.lr.peak"),
    "53-override-without-value": ("optim.lr", "'optim.lr': an override reads section.key=value"),
    "53-override-without-section": ("lr=1", "'lr=1': an override reads section.key=value"),
    "54-duplicate-in-an-override": ("data.fields={a: 1, a: 2}", "key 'a' appears twice; keep one"),
    "55-value-that-is-no-yaml": ("optim.lr={", "optim.lr, on the command line: not YAML"),
    "55-number-with-a-letter": ("optim.lr=1e-4x", "optim.lr: ", "a valid number, found '1e-4x'"),
    "55-word-for-a-number": ("optim.lr=fast", "optim.lr: ", "a valid number, found 'fast'"),
    "55-number-for-a-switch": ("data.packing=1", "data.packing: ", "a valid boolean, found 1"),
    "55-text-for-a-count": ("optim.epochs='2'", "optim.epochs: ", "a valid integer, found '2'"),
    "55-switch-for-a-count": ("optim.epochs=true", "optim.epochs: ", "integer, found True"),
    "55-nothing-for-a-number": ("optim.lr=", "optim.lr: ", "a valid number, found None"),
    "55-switch-for-a-word": ("run.resume=no", "run.resume: ", "a valid string, found False"),
    "55-number-for-a-list": ("tuning.target_modules=3", "tuning.target_modules", "found 3"),
    "55-one-class-weight": ("loss.alpha=[1.0]", "loss.alpha: ", "at least 2", "found [1.0]"),
    "56-lr-0": ("optim.lr=0", "optim.lr: ", "greater than 0, found 0"),
    "56-lr-negative": ("optim.lr=-1e-3", "optim.lr: ", "greater than 0, found -0.001"),
    "56-lr-nan": ("optim.lr=.nan", "optim.lr: ", "a finite number, found nan"),
    "56-lr-infinite": ("optim.lr=.inf", "optim.lr: ", "a finite number, found inf"),
    "56-lr-above-every-number": ("optim.lr=1e400", "optim.lr: ", "a finite number, found inf"),
    "57-unknown-preset": (
        "engine.preset=gpu_zero9",
        "no preset 'gpu_zero9'",
        "did you mean 'gpu_zero3'?",
        "v100x8",
    ),
    "59-micro-batch-0": ("optim.micro_batch_size=0", "greater than or equal to 1, found 0"),
    "59-micro-batch-2.5": ("optim.micro_batch_size=2.5", "a valid integer, found 2.5"),
    "59-global-batch-negative": ("optim.global_batch_size=-8", "equal to 1, found -8"),
    "60-rank-0": ("tuning.lora_r=0", "tuning.lora_r: ", "greater than or equal to 1, found 0"),
    "61-gamma-negative": ("loss.gamma=-1", "loss.gamma: ", "greater than or equal to 0, found -1"),
    "61-gamma-nan": ("loss.gamma=.nan", "loss.gamma: ", "a finite number, found nan"),
    "62-dropout-1": ("tuning.lora_dropout=1.0", "tuning.lora_dropout: ", "less than 1, found 1.0"),
    "66-unknown-schedule": (
        "optim.schedule=cosin",
        "'cosine', 'linear', 'constant' or 'wsd', found 'cos",
    ),
    "66-unknown-optimizer": (
        "optim.optimizer=lyon",
        "'adamw', 'adamw_8bit', 'paged",
        "found 'lyon'",
    ),
    "68-no-such-model": ("model.config=/no/such/model", "model.config: /no/such/model does not"),
    "71-output-is-the-dataset": ("run.output_dir={data}", "run.output_dir", "choose another"),
    "72-save-interval-0": ("save.interval=0", "save.interval", "equal to 1, found 0"),
    "72-save-interval-negative": ("save.interval=-5", "save.interval", "equal to 1, found -5"),
    "72-keep-only-one": ("save.keep=1", "save.keep: ", "greater than or equal to 2, found 1"),
}


@pytest.mark.parametrize(
    ("override", "parts"),
    [pytest.param(case[0], case[1:], id=name) for name, case in REFUSED.items()],
)
def test_a_bad_value_is_refused_with_its_key_the_finding_and_what_is_allowed(base, override, parts):
    override = override.replace("{data}", str(preset_module.ROOT / "data" / "samples"))
    message = refusal(base, override)
    assert [part for part in parts if part not in message] == [], message


COMBINATIONS = {
    "63-warm-up-above-all-steps": (
        ("optim.epochs=null", "optim.max_steps=5", "optim.warmup_steps=6"),
        "optim.warmup_steps 6 is above optim.max_steps 5",
    ),
    "65-fp16-model-in-a-bf16-run": (
        ("model.dtype=fp16", "engine.precision=bf16"),
        "model.dtype fp16 with engine.precision bf16: take model.dtype=auto",
    ),
    "67-windows-that-repeat-all-of-the-one-before": (
        ("data.seq_length=64", "data.window_overlap=63", "data.long_functions=window"),
        "data.window_overlap 63 leaves windows of data.seq_length 64 no new token",
        "at most 62",
    ),
    "67-windows-that-are-not-cut": (
        ("data.window_overlap=8",),
        "data.window_overlap 8 is for data.long_functions=window, found truncate",
    ),
    "67-classes-weighed-twice": (
        ("loss.alpha=[1.0, 2.0]", "loss.class_weights=balanced", "data.sampling=balanced"),
        "loss.alpha and loss.class_weights and data.sampling would each weigh the classes",
        "take one",
    ),
    "67-zero-0-with-bf16": (
        ("engine.preset=gpu_zero0", "engine.precision=bf16"),
        "engine.preset gpu_zero0 is ZeRO 0, where DeepSpeed scales bf16 gradients wrongly",
        "zero1 preset",
        "engine.precision=fp32",
    ),
    "67-zero-0-with-fp16": (
        ("engine.preset=cpu_zero0", "engine.precision=fp16"),
        "scales fp16 gradients wrongly",
    ),
    "67-qlora-with-zero-3": (
        ("tuning.method=qlora", "engine.preset=gpu_zero3"),
        "tuning.method qlora with engine.preset gpu_zero3: ZeRO 3 would shard packed weights",
        "take a zero1 or zero2 preset",
        "tuning.method=lora with ZeRO 3",
    ),
    "67-8-bit-optimizer-with-zero-3": (
        ("optim.optimizer=paged_adamw_8bit", "engine.preset=gpu_zero3"),
        "optim.optimizer paged_adamw_8bit with engine.preset gpu_zero3",
        "or optim.optimizer=adamw",
    ),
    "67-a-cache-of-nothing": (
        ("model.quantize_cache=/tmp/x",),
        "model.quantize_cache with tuning.method lora: nothing is quantised",
    ),
    "67-epochs-and-steps": (("optim.max_steps=5",), "set exactly one of epochs and max_steps"),
    "67-neither-epochs-nor-steps": (("optim.epochs=null",), "set exactly one of epochs and max"),
    "67-weights-and-random-weights": (
        ("model.path=.", "model.config=."),
        "model: set exactly one of path",
    ),
    "67-no-model": (("model.config=null",), "model: set exactly one of path (weights) and config"),
}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [pytest.param(case[0], case[1:], id=name) for name, case in COMBINATIONS.items()],
)
def test_keys_that_do_not_go_together_are_refused_with_a_way_out(base, overrides, parts):
    message = refusal(base, *overrides)
    assert [part for part in parts if part not in message] == [], message


def test_63_warm_up_over_all_steps_is_allowed(base):
    overrides = ("optim.epochs=null", "optim.max_steps=5", "optim.warmup_steps=5")
    assert load_run_config(base, overrides).optim.warmup_steps == 5


def test_every_mistake_of_a_recipe_is_named_at_once(base):
    lines = refusal(base, "optim.lr=0", "loss.gama=2", "tuning.lora_r=0").splitlines()
    assert len(lines) == 3
    assert any("unknown key loss.gama; did you mean 'gamma'?" in line for line in lines)


TEXTS = {
    "54-duplicate-key": (
        "run: {output_dir: x}\noptim:\n  lr: 1e-3\n  epochs: 1\n  lr: 1e-4\n",
        "line 5: key 'lr' appears twice; keep one",
    ),
    "54-duplicate-section": ("run: {}\noptim: {}\nrun: {}\n", "line 3: key 'run' appears twice"),
    "55-list-of-sections": ("- run\n- model\n", "a recipe holds sections such as run, model, data"),
    "55-empty-recipe": ("", "a recipe holds sections such as run, model, data"),
    "55-not-yaml": ("run: [\n", "not YAML"),
    "55-python-object": ("run: !!python/object/apply:os.getcwd []\n", "not YAML"),
}


@pytest.mark.parametrize(
    ("text", "part"), [pytest.param(*case, id=name) for name, case in TEXTS.items()]
)
def test_a_file_that_is_no_recipe_is_refused_by_name_and_line(tmp_path, text, part):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refusal(path)
    assert f"{path}: " in message
    assert part in message


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"run: {output_dir: {{ name }}}\n", id="55-template-left-unfilled"),
        pytest.param(b"run: {output_dir: caf\xe9}\n", id="55-not-utf-8"),
    ],
)
def test_a_file_that_yaml_itself_stumbles_over_is_refused_by_name(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert f"{path}: " in refusal(path)


def test_55_a_section_without_keys_is_refused_by_name(base):
    base.write_text(base.read_text() + "loss:\n")
    assert "loss: " in refusal(base)
    assert "section 'loss' must hold keys, found None" in refusal(base, "loss.gamma=1")


def test_required_keys_are_asked_for(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("run: {seed: 1}\ndata: {}\n")
    message = refusal(path)
    assert "run.output_dir is required" in message
    assert "model is required" in message


def test_68_a_missing_recipe_is_shown_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"no.yaml is not a file (resolved: {tmp_path}/no.yaml)" in refusal(Path("no.yaml"))


def test_68_a_missing_model_is_shown_resolved(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"model.config: {tmp_path}/mine does not exist" in refusal(base, "model.config=mine")


@pytest.mark.parametrize(
    ("key", "other"),
    [
        pytest.param("data.path", (), id="71-dataset"),
        pytest.param("model.path", ("model.config=null",), id="71-model"),
        pytest.param("data.tokenizer", (), id="71-tokenizer"),
        pytest.param(
            "model.config",
            (),
            id="71-random-model",
        ),
    ],
)
def test_an_output_folder_that_is_an_input_is_refused(base, tmp_path, key, other):
    message = refusal(base, *other, f"{key}={tmp_path}", f"run.output_dir={tmp_path}/x/..")
    assert f"run.output_dir {tmp_path} is the dataset's or the model's folder" in message


@pytest.mark.parametrize("shown", ["{0}/mine", "../{1}/mine", "./cpu_zero1", "", "cpu_zero1\\0"])
def test_57_a_preset_is_a_name_not_a_path(shown, tmp_path):
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 1}}')
    name = shown.format(tmp_path, os.path.relpath(tmp_path, preset_module.PRESET_FOLDER)[3:])
    with pytest.raises(ConfigError, match=r"engine.preset: no preset .*Machines: .*, cpu,"):
        load_preset(name)


def load_written_preset(folder: Path, monkeypatch: pytest.MonkeyPatch, preset: object) -> str:
    monkeypatch.setattr(preset_module, "PRESET_FOLDER", folder)
    text = preset if isinstance(preset, str) else json.dumps(preset)
    (folder / "mine.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_preset("mine")
    return str(caught.value)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(4, id="57-stage-4"),
        pytest.param(-1, id="57-stage-negative"),
        pytest.param("2", id="57-stage-as-text"),
        pytest.param(True, id="57-stage-true"),
        pytest.param(None, id="57-stage-null"),
        pytest.param(2.0, id="57-stage-2.0"),
    ],
)
def test_a_stage_that_does_not_exist_is_refused_with_the_file(tmp_path, monkeypatch, stage):
    message = load_written_preset(tmp_path, monkeypatch, {"zero_optimization": {"stage": stage}})
    assert (
        f"ds_configs/mine.json: zero_optimization.stage must be 0, 1, 2 or 3, found {stage!r}"
        in (message)
    )


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param({}, id="57-no-zero-section"),
        pytest.param({"zero_optimization": 2}, id="57-zero-is-a-number"),
        pytest.param([], id="57-preset-is-a-list"),
        pytest.param("{", id="57-preset-is-no-json"),
    ],
)
def test_a_preset_without_a_stage_is_refused_with_the_file(tmp_path, monkeypatch, preset):
    assert "ds_configs/mine.json" in load_written_preset(tmp_path, monkeypatch, preset)


@pytest.mark.parametrize(
    "key", ["train_batch_size", "gradient_accumulation_steps", "bf16", "optimizer", "scheduler"]
)
def test_58_a_preset_with_a_key_of_the_run_is_refused_with_file_and_key(tmp_path, monkeypatch, key):
    preset = {"zero_optimization": {"stage": 1}, key: 1}
    message = load_written_preset(tmp_path, monkeypatch, preset)
    assert f"ds_configs/mine.json sets [{key!r}], which the run owns; remove it there" in message
