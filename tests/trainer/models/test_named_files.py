"""What lies beside a base's weights, and what config.json asks for, changes nothing silently."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from trainer.architectures.meta_model import derived_shape
from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError, ModelError
from trainer.models.files import base_digest, check_model_files, read_config
from trainer.models.load import load_base, load_quantized_base
from trainer.models.weights import not_loaded_line
from trainer.run.preparation import prepare_run
from trainer.run_folder.model import complete_model
from trainer.tuning.plain import train_all

LANGUAGE = "task.name=causal_lm"


@pytest.fixture
def folder(saved_model, tmp_path):
    return shutil.copytree(saved_model, tmp_path / "model")


@pytest.fixture
def recipe(tiny_recipe, folder):
    """A function from overrides to the settled recipe of the copy."""

    def load(*overrides):
        settled = ["engine.precision=fp32", "model.attention=segment_sdpa", *overrides]
        if LANGUAGE in overrides:
            settled.append("loss.alpha=null")
        return load_run_config(tiny_recipe, ["model.config=null", f"model.path={folder}", *settled])

    return load


@pytest.fixture
def adapter(folder, tmp_path):
    """An adapter with weights that are not 0, saved by stock PEFT."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(model, LoraConfig(target_modules=["c_attn"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder):
    """The weights in two files with an index; returns the files."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return [folder / file for file in parts]


def test_an_adapter_beside_the_weights_is_not_loaded_but_named(recipe, folder, adapter):
    config = recipe(LANGUAGE)
    alone = {name: tensor.clone() for name, tensor in load_base(config).state_dict().items()}
    digest = base_digest(config.model, 0)
    for path in adapter.glob("adapter_*"):
        shutil.copy(path, folder)
    stock = AutoModelForCausalLM.from_pretrained(folder)
    assert any("lora_" in name for name in stock.state_dict())  # what would happen by itself
    again = load_base(config).state_dict()
    assert again.keys() == alone.keys()
    assert all(torch.equal(again[name], alone[name]) for name in alone)
    assert base_digest(config.model, 0) == digest  # it is the same base
    assert f"tuning.init_from={folder}" in not_loaded_line(folder)


def test_full_tuning_saves_the_whole_model_beside_an_adapter(recipe, folder, adapter, tmp_path):
    for path in adapter.glob("adapter_*"):
        shutil.copy(path, folder)
    config = recipe(LANGUAGE)
    model = train_all(load_base(config), config.tuning)
    model.save(tmp_path / "out", dict(model.named_parameters()))
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == (
        load_file(folder / "model.safetensors").keys()
    )


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_an_adapter_folder_as_base_is_named_with_init_from(recipe, adapter, has_tokenizer, folder):
    config = recipe()
    tokenizer = str(folder) if has_tokenizer else None
    config = config.changed("model", path=str(adapter)).changed("data", tokenizer=tokenizer)
    with pytest.raises(ModelError, match=f"is an adapter .*tuning.init_from={adapter}"):
        prepare_run(config)
    shutil.copy(folder / "config.json", adapter)  # as some programs save adapters
    with pytest.raises(ModelError, match=f"holds an adapter .*tuning.init_from={adapter}"):
        check_model_files(config, 2048)


def test_generation_settings_that_cannot_be_saved_are_not_taken(recipe, folder, tmp_path):
    bad = {"do_sample": False, "temperature": 0.3, "num_beams": -1}
    (folder / "generation_config.json").write_text(json.dumps(bad))
    load_base(recipe(LANGUAGE)).save_pretrained(tmp_path / "out")


REFUSED = {
    "77-code": {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
    "quantised": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "compressed": {"compression_config": {"format": "x"}},
    "other-weights": {"transformers_weights": "other.safetensors"},
    "other-settings": {"configuration_files": ["config.4.0.0.json"]},
    "code-of-a-part": {"text_config": {"auto_map": {"AutoModel": "x.Y"}}},
}


@pytest.mark.parametrize("values", REFUSED.values(), ids=REFUSED)
def test_config_json_cannot_name_something_else_to_load(recipe, folder, values):
    change(folder / "config.json", **values)
    block = values.get("text_config", values)
    with pytest.raises(ModelError, match=f"config.json: {next(iter(block))} "):
        read_config(recipe().model)


@pytest.mark.parametrize("key", ["auto_map", "quantization_config"])
def test_an_empty_key_names_nothing(recipe, folder, key):
    change(folder / "config.json", **{key: None})
    assert load_base(recipe()).config.model_type == "gpt_bigcode"


def test_config_json_does_not_set_how_the_model_runs(recipe, folder):
    odd = {
        "dtype": "float16", "torch_dtype": "float16", "attn_implementation": "some-hub/kernel",
        "_attn_implementation": "some-hub/kernel", "output_attentions": True, "return_dict": False,
        "output_hidden_states": True, "_commit_hash": "0" * 40, "_name_or_path": "some-hub/model",
    }  # fmt: skip
    change(folder / "config.json", **odd)
    model = load_base(recipe())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "sdpa"
    assert model.config.return_dict
    assert not model.config.output_attentions
    assert not model.config.output_hidden_states
    assert model.name_or_path == model.config._name_or_path == str(folder)


def test_a_base_for_other_labels_gets_ours(recipe, folder):
    change(folder / "config.json", id2label={"0": "a", "1": "b", "2": "c"}, num_labels=3)
    model = load_base(recipe())
    assert model.score.weight.shape == (2, 32)
    assert model.config.id2label == {0: "not vulnerable", 1: "vulnerable"}
    assert model.config.label2id == {"not vulnerable": 0, "vulnerable": 1}


def test_shards_of_an_index_are_the_weights(recipe, folder):
    whole = load_base(recipe(LANGUAGE)).state_dict()
    shard(folder)
    save_file({"odd": torch.ones(2)}, folder / "consolidated.safetensors")  # another program's
    assert all(
        torch.equal(t, whole[n]) for n, t in load_base(recipe(LANGUAGE)).state_dict().items()
    )


def test_74_a_missing_shard_is_named(recipe, folder):
    shard(folder)[1].unlink()
    with pytest.raises(ModelError, match=r"1 of 2 shards are missing, first model-2\.safetensors"):
        check_model_files(recipe(), 2048)


@pytest.mark.parametrize("name", ["../model.safetensors", "/x.safetensors", "model.bin", 3])
def test_an_index_names_only_weights_of_its_folder(recipe, folder, name):
    shard(folder)
    change(folder / "model.safetensors.index.json", weight_map={"x": name})
    with pytest.raises(ModelError, match=r"must be a \.safetensors file of this folder"):
        check_model_files(recipe(), 2048)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', "{", '{"weight_map": {}}'])
def test_a_damaged_index_is_named(recipe, folder, content):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        check_model_files(recipe(), 2048)


def test_two_models_in_a_folder_are_refused(recipe, folder):
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(ModelError, match="move away the one that is not the model"):
        check_model_files(recipe(), 2048)


def test_weights_under_another_name_are_listed(recipe, folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"found \['weights.safetensors'\]"):
        check_model_files(recipe(), 2048)


def test_tied_weights_that_differ_stay_apart_and_are_saved_so(recipe, folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_base(recipe(LANGUAGE))
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    assert model.config.tie_word_embeddings is False
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, weights["lm_head.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_85_a_value_that_is_not_finite_names_its_tensor(recipe, folder, value, dtype):
    name = "transformer.h.1.attn.c_attn.weight"
    weights = {n: t.to(dtype) for n, t in load_file(folder / "model.safetensors").items()}
    weights[name][3, 3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"'{name}' holds NaN or infinity in 1 of"):
        load_base(recipe())
    with pytest.raises(ModelError, match=name):
        load_quantized_base(recipe("tuning.method=qlora"), folder, "")


def test_a_trained_head_is_kept_by_qlora_too(recipe, folder):
    torch.manual_seed(7)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    classifier.save_pretrained(folder)
    head = load_file(folder / "model.safetensors")["score.weight"]
    config = recipe("tuning.method=qlora")
    assert torch.equal(load_base(config).score.weight, head)
    assert torch.equal(load_quantized_base(config, folder, "").score.weight, head)


def test_a_saved_model_has_the_files_and_the_pad_token_that_stock_tools_need(
    recipe, folder, tmp_path
):
    extra = (
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "added_tokens.json",
        "chat_template.json",
    )
    for name in extra:
        (folder / name).write_text(name)
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    (folder / "modeling_own.py").write_text("raise SystemExit")
    config, out = recipe(), tmp_path / "out"
    load_base(config).save_pretrained(out)
    complete_model(out, config)
    for name in (*extra, "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    assert not (out / "modeling_own.py").exists()
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == 1  # the base's
    change(folder / "config.json", pad_token_id=None)
    complete_model(out, config)
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == 1  # the tokenizer's
    change(folder / "tokenizer_config.json", pad_token="<|endoftext|>")
    complete_model(out, config)
    assert json.loads((out / "config.json").read_text())["pad_token_id"] is None  # ends texts, too


@pytest.mark.parametrize("key", ["model.path", "data.tokenizer"])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-Coder-0.5B", "gpt2"])
def test_68_a_hub_id_is_not_looked_up(tiny_recipe, tmp_path, monkeypatch, key, name):
    monkeypatch.chdir(tmp_path)
    overrides = [f"{key}={name}"] + (["model.config=null"] if key == "model.path" else [])
    with pytest.raises(
        ConfigError, match=f"ids are not looked up: .*hf download {name} --local-dir"
    ):
        load_run_config(tiny_recipe, overrides)


def test_68_a_file_as_model_path_is_refused(tiny_recipe, folder):
    path = f"model.path={folder / 'model.safetensors'}"
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        load_run_config(tiny_recipe, ["model.config=null", path])


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_planning_a_type_without_an_entry_fetches_no_kernel(key):
    values = {
        "model_type": "stablelm", "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    plain = derived_shape(values, None)
    assert derived_shape(values | {key: "some-hub/kernel"}, None) == plain
