"""The text model of a multimodal checkpoint: its weights, own scores and a folder of its own."""

import json
import shutil

import pytest
import torch
import transformers
from head_cases import KINDS, TOLERANCE, exported, records, stock_logits, trained
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.errors import ModelError
from trainer.models.files import check_model_files, hidden_size
from trainer.models.load import load_base
from trainer.models.text_model import text_model_line, text_names, text_prefix
from trainer.run.build import build_model

LANGUAGE = {"name": "causal_lm"}


@pytest.fixture(scope="module", params=["gemma3", "qwen3_5"])
def whole(request, folders, tmp_path_factory):
    """A multimodal model and its folder."""
    if request.param == "gemma3":
        folder = folders("gemma3")
    else:
        text = KINDS["llama"][1] | {
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        }  # fmt: skip
        vision = {
            "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": 32, "patch_size": 4, "num_position_embeddings": 16,
        }  # fmt: skip
        settings = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision)
        folder = tmp_path_factory.mktemp("qwen3_5")
        torch.manual_seed(1)
        transformers.AutoModelForImageTextToText.from_config(settings).save_pretrained(folder)
    return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval(), folder


def test_the_text_model_alone_has_the_logits_of_the_whole(whole, config_of, tmp_path):
    model, folder = whole
    ours = load_base(config_of(folder).changed("task", **LANGUAGE))
    assert type(ours).__name__.endswith("ForCausalLM")
    assert ours.config._attn_implementation == "sdpa"  # as stock chooses
    assert not any("vis" in name for name, _ in ours.named_parameters())
    pieces, _ = records()
    expected = torch.cat([model(input_ids=torch.tensor([one])).logits[:, -1] for one in pieces])
    found = torch.cat([ours(input_ids=torch.tensor([one])).logits[:, -1] for one in pieces])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    ours.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.config.model_type == model.config.text_config.model_type
    found = torch.cat([stock(input_ids=torch.tensor([one])).logits[:, -1] for one in pieces])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert not any("language_model" in name for name in load_file(tmp_path / "model.safetensors"))


def test_names_of_every_age_are_found(whole, config_of, tmp_path):
    """Checkpoints call the text model language_model.model, model.language_model or model."""
    _, folder = whole
    expected = dict(load_base(config_of(folder).changed("task", **LANGUAGE)).named_parameters())
    ours = load_base(config_of(folder).changed("task", **LANGUAGE))
    old = text_prefix(load_file(folder / "model.safetensors"), ours)
    for number, prefix in enumerate(("language_model.model.", "model.language_model.", "model.")):
        other = shutil.copytree(folder, tmp_path / str(number))
        weights = {
            name.replace(old, prefix, 1) if name.startswith(old) else name: value
            for name, value in load_file(folder / "model.safetensors").items()
        }
        if number == 0 and "lm_head.weight" in weights:
            weights["language_model.lm_head.weight"] = weights.pop("lm_head.weight")
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        found = load_base(config_of(other).changed("task", **LANGUAGE))
        for name, value in found.named_parameters():
            assert torch.equal(value, expected[name]), (prefix, name)


def test_a_text_model_of_other_files_has_no_names():
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **KINDS["llama"][1])
        )
    assert text_names(["vision.encoder.weight"], skeleton) == {}
    assert text_names(["model.norm.weight", "lm_head.weight"], skeleton) == {}
    assert text_names(["a.b.norm.weight", "a.lm_head.weight"], skeleton) == {
        r"^a\.b\.": "model.", r"^a\.lm_head\.weight$": "lm_head.weight",
    }  # fmt: skip


def test_sizes_are_those_of_the_text_model(whole, config_of):
    _, folder = whole
    assert hidden_size(config_of(folder).model) == 32
    with pytest.raises(ModelError, match=r"401 tokens, the model's embedding 400 rows"):
        check_model_files(config_of(folder), 401)


def test_a_full_run_leaves_a_text_model_that_stock_loads(whole, config_of, tmp_path):
    _, folder = whole
    config = config_of(folder, "tuning.method=full")
    model, ours = trained(config)
    full = exported(model, config, tmp_path / "full")
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(full).eval()
    torch.testing.assert_close(stock_logits(stock, records()[0]), ours, atol=TOLERANCE, rtol=0)
    settings = json.loads((full / "config.json").read_text())
    assert settings["model_type"].endswith("_text")
    assert settings["pad_token_id"] == 1


def test_the_banner_names_what_is_left_out(whole, config_of):
    model, folder = whole
    config = config_of(folder)
    kinds = [model.config.text_config.model_type, model.config.model_type]
    line = text_model_line(config.model, build_model(config).model.get_base_model())
    weights = load_file(folder / "model.safetensors")
    vision = [name for name in weights if "vis" in name or "projector" in name]
    assert line.startswith(f"the text model {kinds[0]} of a {kinds[1]} alone; {len(vision)} of")
    assert f"{len(weights)} tensors are left out" in line
    alone = text_model_line(config.changed("model", path=None, config=str(folder)).model, model)
    assert alone == f"the text model {kinds[0]} of a {kinds[1]} alone"
