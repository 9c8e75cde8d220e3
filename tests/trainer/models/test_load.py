"""A base from its files: weights as saved, and a fault named before anything trains."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError, ModelError
from trainer.models.files import base_digest, check_model_files
from trainer.models.load import load_base


@pytest.fixture
def base(saved_model, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved_model, tmp_path / "model")


def config_of(recipe, folder):
    settled = ["engine.precision=fp32", "model.attention=segment_sdpa"]
    return load_run_config(recipe, ["model.config=null", f"model.path={folder}", *settled])


def test_the_backbone_has_the_weights_of_the_files(tiny_recipe, base):
    model = load_base(config_of(tiny_recipe, base))
    saved = load_file(base / "model.safetensors")
    for name, weight in model.base_model.named_parameters():
        assert torch.equal(weight, saved[f"transformer.{name}"]), name
    assert model.score.weight.shape == (2, 32)


def test_the_head_is_drawn_from_the_seed(tiny_recipe, base):
    config = config_of(tiny_recipe, base)
    first, again = (load_base(config).score.weight for _ in range(2))
    assert torch.equal(first, again)


def test_74_missing_weights_are_refused_not_drawn_at_random(tiny_recipe, base):
    weights = load_file(base / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"h\.1\.mlp\.c_fc\.weight"):
        load_base(config_of(tiny_recipe, base))


def test_75_a_cut_off_shard_is_refused(tiny_recipe, base):
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="does not load"):
        load_base(config_of(tiny_recipe, base))


def test_76_pickled_weights_are_refused(tiny_recipe, base):
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        check_model_files(config_of(tiny_recipe, base), 2048)


def test_77_a_model_with_code_of_its_own_is_refused(tiny_recipe, base):
    values = json.loads((base / "config.json").read_text()) | {"auto_map": {"AutoModel": "x.Y"}}
    (base / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="auto_map"):
        check_model_files(config_of(tiny_recipe, base), 2048)


def test_80_a_vocabulary_above_the_embedding_shows_both_numbers(tiny_recipe, base):
    with pytest.raises(ModelError, match=r"3000 tokens, the model's embedding 2048 rows"):
        check_model_files(config_of(tiny_recipe, base), 3000)


def test_64_rows_above_the_positions_of_the_model_are_refused(tiny_recipe, base):
    overrides = ["model.config=null", f"model.path={base}", "data.seq_length=4096"]
    with pytest.raises(ConfigError, match=r"4096 is above the model's 2048 positions"):
        check_model_files(load_run_config(tiny_recipe, overrides), 2048)


def test_92_the_digest_tells_fine_tunes_of_one_base_apart(tiny_recipe, base):
    config = config_of(tiny_recipe, base)
    before = base_digest(config.model, config.run.seed)
    assert base_digest(config.model, config.run.seed) == before
    weights = load_file(base / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert base_digest(config.model, config.run.seed) != before
