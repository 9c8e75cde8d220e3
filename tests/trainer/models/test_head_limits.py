"""Heads at their limits: what is drawn, saved, refused, and never silently different."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from example_sets import example_set
from head_cases import (
    BERT,
    END,
    KINDS,
    TOLERANCE,
    VOCABULARY,
    exported,
    records,
    stock_logits,
    trained,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from data.batches.batch import collate
from trainer.architectures.classes import model_class
from trainer.errors import ConfigError, ModelError
from trainer.models.files import base_digest, check_model_files
from trainer.models.load import load_base
from trainer.models.quantized import quantized_layers
from trainer.run.build import build_model, resolve_here
from trainer.tuning.continued import take_adapter
from trainer.tuning.plain import save_base


@pytest.mark.parametrize("kind", ["olmoe", "bert", "t5", "gemma3"])
@pytest.mark.parametrize("method", ["full", "lora", "adapter_h"])
def test_another_start_takes_the_head_too(kind, method, folders, config_of, tmp_path):
    more = [f"tuning.method={method}"]
    if method == "adapter_h":
        part = {"t5": "wi", "bert": "output.dense", "olmoe": "o_proj"}.get(kind, "down_proj")
        more += ["tuning.adapter_size=3", f"tuning.target_modules=[{part}]"]
    config = config_of(folders(kind), *more)
    model, _ = trained(config)
    folder = exported(model, config, tmp_path / "saved")
    again = build_model(config.changed("run", seed=9))
    take_adapter(again.model, folder)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other) or not one.requires_grad, name


def test_an_exported_head_is_not_drawn_again(folders, config_of, tmp_path):
    config = config_of(folders("granite"), "tuning.method=full")
    model, _ = trained(config)
    folder = exported(model, config, tmp_path / "full")
    again = load_base(config_of(folder))
    assert torch.equal(again.score.weight, model.model.get_base_model().score.weight)
    before = base_digest(config_of(folder).model, 3)
    save_file({"weight": again.score.weight.detach() + 1e-3}, folder / "score.safetensors")
    assert base_digest(config_of(folder).model, 3) != before


@pytest.mark.parametrize("kind", ["granite", "bert", "t5", "gemma3"])
def test_a_base_of_random_weights_has_its_head_from_the_seed(kind, folders, config_of, tmp_path):
    random = [f"model.config={folders(kind)}", "model.path=null"]
    first, again = (load_base(config_of("", *random)) for _ in range(2))
    for (name, one), other in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
    other = load_base(config_of("", *random, "run.seed=4"))
    head = KINDS[kind][3][0]
    one, two = (next(m.get_submodule(head).parameters()).detach() for m in (first, other))
    assert not torch.equal(one, two)
    assert float(one.std()) == pytest.approx(float(two.std()), rel=0.3)
    save_base(first, tmp_path)
    stock = transformers.AutoModel.from_pretrained(tmp_path)
    ids = torch.tensor([records()[0][0]])
    more = {"decoder_input_ids": ids} if kind == "t5" else {}
    with torch.no_grad():
        ours, theirs = (
            model.eval()(input_ids=ids, **more).last_hidden_state
            for model in (first.base_model, stock)
        )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "part"), [("granite", "mlp"), ("bert", "query"), ("gemma3", "mlp")]
)
def test_a_backbone_weight_that_is_missing_is_not_drawn(kind, part, folders, config_of, tmp_path):
    folder = shutil.copytree(folders(kind), tmp_path / kind)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if part in name and "vision" not in name)
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights of the model are missing.*" + part):
        load_base(config_of(folder))


@pytest.mark.parametrize("kind", ["roberta", "bert", "t5", "bart", "modernbert"])
def test_language_tasks_refuse_encoders_by_name(kind, folders, config_of, tmp_path):
    folder = shutil.copytree(folders(kind), tmp_path / kind)
    config = config_of(folder).changed("task", name="causal_lm")
    both = kind in ("t5", "bart")
    message = rf"model_type {kind} is an encoder{'-decoder' if both else ':'}.*task.name=classif"
    with pytest.raises(ModelError, match=message):
        check_model_files(config, VOCABULARY)  # by config.json, before anything heavy
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"architectures": None}))
    with pytest.raises(ModelError, match=message):
        load_base(config)


def test_an_end_token_that_the_head_does_not_read_is_refused(folders, config_of):
    check_model_files(config_of(folders("t5")), VOCABULARY, END)
    with pytest.raises(ModelError, match="eos_token_id 2 is not the id 0 of the token that ends"):
        check_model_files(config_of(folders("t5")), VOCABULARY, 0)
    check_model_files(config_of(folders("bert")), VOCABULARY, 0)  # reads the first token


def test_positions_that_belong_to_the_padding_are_not_for_tokens(folders, config_of):
    cpu = torch.device("cpu")
    resolve_here(config_of(folders("roberta"), "data.seq_length=254"), cpu)
    with pytest.raises(ConfigError, match=r"255 is above the model's 254 positions"):
        resolve_here(config_of(folders("roberta"), "data.seq_length=255"), cpu)
    resolve_here(config_of(folders("bert"), "data.seq_length=256"), cpu)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_records_may_write_end_tokens_inside(kind, folders, config_of):
    model, _ = trained(config_of(folders(kind), "tuning.method=full"))
    pieces, _ = records()
    pieces[0][3], pieces[2][7], pieces[2][9] = END, END, END
    with torch.no_grad():
        ours = model(collate(example_set(pieces), [np.arange(len(pieces))]))
        empty = model(collate(example_set(pieces), []))
    stock = stock_logits(model.model.get_base_model(), pieces)
    torch.testing.assert_close(ours, stock, atol=TOLERANCE, rtol=0)
    assert empty.shape == (0, 2)


def test_padding_is_never_the_end_token(folders, config_of, tmp_path):
    folder = shutil.copytree(folders("t5"), tmp_path / "t5")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"pad_token_id": END}))
    model, ours = trained(config_of(folder, "tuning.method=full"))
    base = model.model.get_base_model()
    assert base.config.pad_token_id == 0
    torch.testing.assert_close(stock_logits(base, records()[0]), ours, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_virtual_tokens_give_the_logits_of_stock_peft(kind, folders, config_of, tmp_path):
    config = config_of(
        folders(kind), "tuning.method=ptuning", "tuning.adapter_size=3", "data.packing=false"
    )
    model, ours = trained(config)
    folder = exported(model, config, tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(folders(kind), num_labels=2)
    stock = PeftModel.from_pretrained(base, folder).eval()
    torch.testing.assert_close(stock_logits(stock, records()[0]), ours, atol=TOLERANCE, rtol=0)


def test_virtual_tokens_leave_the_mean_of_a_function_alone(folders, config_of):
    more = ["tuning.method=ptuning", "tuning.adapter_size=3", "data.packing=false"]
    model, ours = trained(config_of(folders("llama"), "model.pooling=mean", *more))
    base = model.model.get_base_model()
    base.set_attn_implementation("eager")
    prompt = model.model.get_prompt(1)
    for piece, logits in zip(records()[0], ours, strict=True):
        with torch.no_grad():
            tokens = base.get_input_embeddings()(torch.tensor([piece]))
            states = base.base_model(
                inputs_embeds=torch.cat([prompt, tokens], 1)
            ).last_hidden_state[0, 3:]
        by_hand = base.score.weight @ states.mean(0)
        torch.testing.assert_close(logits, by_hand, atol=TOLERANCE, rtol=0)


def test_what_an_own_head_cannot_do_is_refused(folders, config_of):
    with pytest.raises(ModelError, match="virtual tokens have none"):
        load_base(config_of(folders("t5"), "tuning.method=ptuning", "data.packing=false"))
    with pytest.raises(ModelError, match=r"bf16 with engine\.precision fp32"):
        load_base(config_of(folders("bert"), "model.dtype=bf16"))


@pytest.mark.parametrize("kind", ["granite", "bert", "gemma3"])
def test_the_head_of_a_quantised_base_is_whole_and_drawn_from_the_seed(kind, folders, config_of):
    made = [
        build_model(
            config_of(folders(kind), "tuning.method=qlora", f"run.seed={seed}", "tuning.lora_r=2")
        )
        for seed in (3, 3, 4)
    ]
    names = [list(quantized_layers(model)) for model in made]
    assert names[0]
    heads = KINDS[kind][3]
    assert not any(head in name for name in names[0] for head in heads)
    first, again, other = (
        next(model.model.get_base_model().get_submodule(heads[0]).parameters()) for model in made
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("granite", "last"), ("qwen2_vl_text", "last"), ("nomic_bert", "auto"),
                          ("bert-generation", "last"), ("mamba", "last")]
)  # fmt: skip
def test_a_backbone_without_a_class_is_read_at_its_last_token(kind, pooling):
    """Encoders without one would be read as a mean; transformers has a class for each of them."""
    assert model_class(transformers.AutoConfig.for_model(kind), "auto").pooling == pooling


def test_a_config_that_demands_a_padding_id_keeps_it(config_of, tmp_path):
    torch.manual_seed(1)
    settings = transformers.AutoConfig.for_model("modernbert-decoder", **BERT | {"pad_token_id": 1})
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    model = load_base(config_of(tmp_path).changed("task", name="causal_lm"))
    assert model.config.pad_token_id == 1


def test_a_model_that_changes_after_a_short_record_is_refused(config_of, tmp_path):
    """BigBird attends to all of a long record once it has seen a short one."""
    values = BERT | {"block_size": 4, "num_random_blocks": 1, "attention_type": "block_sparse"}
    torch.manual_seed(1)
    settings = transformers.AutoConfig.for_model("big_bird", **values)
    transformers.AutoModelForMaskedLM.from_config(settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="big_bird: packed records do not give the model's own"):
        trained(config_of(tmp_path, "tuning.method=full"))
