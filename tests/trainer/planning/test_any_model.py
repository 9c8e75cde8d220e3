"""Plans of models that no entry describes: experts, hybrids, and those that cannot be planned."""

import json
from dataclasses import replace
from typing import Any

import pytest
import rank_checks
from rank_pool import run_ranks

from launcher.plan import main as plan_main
from trainer.config.machines import DEVICES, Machine
from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError
from trainer.models.files import check_model_files, hidden_size
from trainer.planning.memory import kept_activations, memory_of
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve

EXPERTS = {
    "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 48, "vocab_size": 2048,
}  # fmt: skip
STATE_SPACE = {
    "model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
    "vocab_size": 2048,
}  # fmt: skip
GPU = Machine(DEVICES["A100-80"], 1)


def write(folder, values):
    """A folder with a config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def config_of(base, tmp_path):
    """A recipe with the content of a config.json as its model."""

    def make(values: dict[str, Any], *overrides: str):
        where = f"model.config={write(tmp_path / 'model', values)}"
        keys = [where, "data.tokenizer=data/samples/model", "data.seq_length=64", *overrides]
        return load_run_config(base, keys)

    return make


def test_qlora_leaves_stacked_experts_in_16_bit(config_of):
    config = config_of(EXPERTS, "tuning.method=qlora", "tuning.quant_type=int8")
    recipe = resolve(config, read_shape(config), GPU)
    memory = memory_of(recipe)
    # Of a block: q 64 x 64, k and v 64 x 32, o 64 x 64. Its router is not a linear layer: eight
    # experts of 3 x 64 x 48 weights are two parameters.
    packed = 2 * (2 * 64 * 64 + 2 * 64 * 32)
    assert memory.quantised_weights == packed * (1 + 4 / 64)
    experts = 2 * 8 * 3 * 64 * 48
    others = 2048 * 64 + 2 * (8 * 64 + 2 * 64 + 2 * 16) + 64
    tables = memory.frozen_weights - 2 * (experts + others)
    assert 0 <= tables < 1024  # rotary frequencies


def test_a_state_space_model_keeps_as_much_of_a_token_in_rows_of_any_length(config_of):
    config = config_of(STATE_SPACE)
    recipe = resolve(config, read_shape(config), GPU)
    assert recipe.shape.attention.heads == 0
    kept = [kept_activations(replace(recipe, record_tokens=length)) for length in (8, 64)]
    mask = 2 * (64 - 8) * recipe.num_tokens if recipe.config.model.attention == "sdpa" else 0
    assert kept[1] - kept[0] == mask


def test_scores_that_are_written_out_grow_with_the_record(config_of):
    bloom = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99}
    config = config_of(bloom, "engine.precision=fp32", "engine.preset=gpu_zero1")
    recipe = resolve(config, read_shape(config), GPU)
    recipe = recipe.changed("model", attention="eager")
    kept = [kept_activations(replace(recipe, record_tokens=length)) for length in (16, 64)]
    # The probabilities and what softmax made of the scores, of 4 heads in 2 blocks; and one mask.
    scores = recipe.shape.kept[4].blocks.growing
    assert scores == 2 * 4 * 4
    assert kept[1] - kept[0] == (64 - 16) * (scores + 4) * recipe.num_tokens


def test_a_model_that_is_not_known_is_planned_as_zero1_and_named(config_of, monkeypatch, capsys):
    config = config_of(EXPERTS)

    def fails(*_: object) -> object:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr("trainer.architectures.classes.ModelClass.skeleton", fails)
    recipe = resolve(config, read_shape(config), Machine(DEVICES["V100-16"], 8))
    assert recipe.config.engine.preset == "v100x8_zero1"
    assert not recipe.faults
    path = str(config.model.config)
    arguments = [
        "recipes/own_functions_lora.yaml",
        f"model.config={path}",
        "data.path=data/samples",
    ]
    assert plan_main([*arguments, "data.tokenizer=data/samples/model"]) == 0
    assert (
        "memory is not known: transformers needs values (Tensor.item()" in capsys.readouterr().out
    )


def test_sizes_have_the_names_that_transformers_reads(config_of):
    mpt = {"model_type": "mpt", "d_model": 48, "n_heads": 4, "n_layers": 1, "vocab_size": 2048}
    assert hidden_size(config_of(mpt).model) == 48
    nested = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    nested["text_config"] |= {"hidden_size": 40, "vocab_size": 3000, "max_position_embeddings": 50}
    assert hidden_size(config_of(nested).model) == 40
    with pytest.raises(ConfigError, match=r"64 is above the model's 50 positions"):
        check_model_files(config_of(nested), 2048)
    defaults = {"model_type": "qwen3", "num_hidden_layers": 1}
    assert hidden_size(config_of(defaults).model) == 4096


@pytest.mark.slow
def test_a_run_starts_where_the_planner_knows_nothing(tiny_recipe, tiny_model, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    for path in tiny_model.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    values = {"model_type": "phi", "intermediate_size": 64, "vocab_size": 2048, **sizes}
    write(folder, values | {"bos_token_id": 0, "eos_token_id": 0})
    command = [str(tiny_recipe), f"run.output_dir={tmp_path / 'run'}", f"model.config={folder}",
               "optim.max_steps=1", "optim.warmup_steps=0"]  # fmt: skip
    printed = tmp_path / "printed"
    assert run_ranks(command, 1, printed, entry=rank_checks.run_unplanned) == [0]
    text = printed.read_text()
    assert text.count("memory is not known: transformers needs values (Cannot copy") == 1
    assert "cpu_zero0" in text
