"""A checkpoint that does not fit the run that is to continue it, by the number of bad inputs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer.config.recipe import load_run_config
from trainer.config.sections import RunConfig
from trainer.engine.state import restore_weights
from trainer.errors import ConfigError, ModelError
from trainer.run_folder.checkpoint import Checkpoint
from trainer.run_folder.resume import moved_lines, refuse_other_run

IDENTITY = {
    "base": "b", "tokenizer": "t", "chat_template": "c", "end_token": "</s>", "train": "d",
}  # fmt: skip


def checkpoint_of(config: RunConfig, world_size: int = 2) -> Checkpoint:
    trainer = {"recipe": config.to_json(), "world_size": world_size}
    return Checkpoint(Path("run/checkpoints/step-00000004"), 4, dict(IDENTITY), trainer)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param("train", id="52-changed-file"),
        pytest.param("base", id="92-other-base"),
        pytest.param("tokenizer", id="93-other-tokenizer"),
        pytest.param("chat_template", id="93-other-chat-template"),
        pytest.param("end_token", id="93-other-end-token"),
    ],
)
def test_a_checkpoint_of_other_files_is_refused_whatever_the_recipe_accepts(changed, base):
    config = load_run_config(base, ["run.accept_changes=true"])
    checkpoint = checkpoint_of(config)
    assert refuse_other_run(checkpoint, config, IDENTITY) == []
    said = rf"step-00000004 was made with another {changed}; restore the files, or choose another"
    with pytest.raises(ModelError, match=said) as caught:
        refuse_other_run(checkpoint, config, IDENTITY | {changed: "other"})
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("override", "line"),
    [
        pytest.param("optim.lr=0.5", r"optim\.lr: .* -> 0\.5", id="73-other-lr"),
        pytest.param(
            "optim.max_grad_norm=9.0", r"optim\.max_grad_norm: .* -> 9\.0", id="73-other-clip"
        ),
        pytest.param("tuning.lora_r=3", r"tuning\.lora_r: .* -> 3", id="94-other-rank"),
        pytest.param(
            "tuning.target_modules=[c_fc]",
            r"tuning\.target_modules: auto -> \['c_fc'\]",
            id="94-other-targets",
        ),
    ],
)
def test_a_changed_recipe_is_listed_and_needs_an_explicit_override(override, line, base):
    language = ["task.name=instruction", "loss.gamma=0"]
    checkpoint = checkpoint_of(load_run_config(base, language))
    said = rf"{line}\n.*run\.accept_changes=true"
    with pytest.raises(ConfigError, match=said):
        refuse_other_run(checkpoint, load_run_config(base, [*language, override]), IDENTITY)
    accepted = load_run_config(base, [*language, override, "run.accept_changes=true"])
    assert len(refuse_other_run(checkpoint, accepted, IDENTITY)) == 1


@pytest.mark.parametrize(
    ("override", "line"),
    [
        pytest.param("data.template=alpaca", r"data\.template: .* -> alpaca", id="93-template"),
        ("data.seq_length=32", r"data\.seq_length: \d+ -> 32"),
        ("data.packing=false", r"data\.packing: True -> False"),
        ("data.sampling=balanced", r"data\.sampling: natural -> balanced"),
        ("data.order=sequential", r"data\.order: shuffled -> sequential"),
        ("data.isolate=false", r"data\.isolate: True -> False"),
        ("run.seed=77", r"run\.seed: \d+ -> 77"),
    ],
)
def test_other_rows_are_refused_whatever_the_recipe_accepts(override, line, base):
    language = ["task.name=instruction", "loss.gamma=0", "run.accept_changes=true"]
    if "sampling" in override:  # of functions alone
        language = language[2:]
    checkpoint = checkpoint_of(load_run_config(base, language))
    said = rf"skipped or repeated:\n  {line}\n.*tuning\.init_from=run"
    with pytest.raises(ConfigError, match=said):
        refuse_other_run(checkpoint, load_run_config(base, [*language, override]), IDENTITY)


def test_arguments_of_a_method_are_kept_whatever_the_recipe_accepts(base):
    """Another key draws other projections; no shape tells."""
    words = ["tuning.method=vera", "run.accept_changes=true"]
    checkpoint = checkpoint_of(load_run_config(base, words))
    other = load_run_config(base, [*words, "tuning.peft.projection_prng_key=9"])
    with pytest.raises(
        ConfigError, match=r"mean something else:\n  tuning\.peft: .*\n.*init_from=run"
    ):
        refuse_other_run(checkpoint, other, IDENTITY)


@pytest.mark.parametrize(
    "override",
    [
        "data.allow_leaks=true", "data.leak_groups=[]", "data.max_bad_rows=9", "data.cache_dir=x",
        "data.end_token=</s>", "model.quantize_cache=x", "save.keep=9", "eval.interval=3",
    ],
)  # fmt: skip
def test_a_key_that_changes_no_row_and_no_step_continues(override, base):
    settings = ["tuning.method=qlora", "engine.preset=cpu_zero1"] if "quantize" in override else []
    checkpoint = checkpoint_of(load_run_config(base, settings))
    again = load_run_config(base, [*settings, override])
    assert refuse_other_run(checkpoint, again, IDENTITY) == []


def test_a_key_that_came_after_the_checkpoint_has_its_default_there(base):
    config = load_run_config(base)
    checkpoint = checkpoint_of(config)
    for section, key in (("model", "pooling"), ("data", "order"), ("data", "packing_window")):
        del checkpoint.trainer["recipe"][section][key]
    assert refuse_other_run(checkpoint, config, IDENTITY) == []
    given = ["model.pooling=mean", "data.packing_window=64", "run.accept_changes=true"]
    with pytest.raises(
        ConfigError, match=r"skipped or repeated:\n  data\.packing_window: None -> 64"
    ):
        refuse_other_run(checkpoint, load_run_config(base, given), IDENTITY)


def test_94_an_accepted_rank_that_the_checkpoint_does_not_fit_is_an_error_of_the_model():
    engine = SimpleNamespace(module=torch.nn.Linear(8, 4, bias=False))
    before = engine.module.weight.detach().clone()
    with pytest.raises(ModelError, match="weight") as caught:
        restore_weights(engine, {"weight": torch.zeros(3, 8)})
    assert caught.value.exit_code == 4
    assert torch.equal(engine.module.weight, before)


def test_95_another_number_of_ranks_is_announced(base):
    checkpoint = checkpoint_of(load_run_config(base), world_size=2)
    assert moved_lines(checkpoint, 2) == []
    [line] = moved_lines(checkpoint, 8)
    assert "written by 2 ranks, continued by 8: same state, same rows" in line
