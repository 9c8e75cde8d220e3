"""Classifiers on every kind of backbone: what is drawn and read, and the same logits in stock."""

import json
import os
import subprocess
import sys

import pytest
import torch
from head_cases import KINDS, TOLERANCE, exported, loader_of, lora, records, stock_logits, trained
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from data.text.labels import Classes
from trainer.architectures.classes import head_modules
from trainer.errors import ModelError
from trainer.models.load import load_base
from trainer.models.pooling import head_line
from trainer.planning.plan import read_shape
from trainer.run.build import build_model
from trainer.run_folder.model import write_facts
from trainer.tuning.plain import save_base


@pytest.mark.parametrize("kind", KINDS)
def test_a_fully_tuned_classifier_has_the_same_logits_in_stock(kind, folders, config_of, tmp_path):
    config = config_of(folders(kind), "tuning.method=full")
    model, ours = trained(config)
    folder = exported(model, config, tmp_path / "full")
    is_ours, (pieces, _) = KINDS[kind][4], records()
    assert (folder / "load_classifier.py").is_file() == is_ours
    if is_ours:
        stock = loader_of(folder)
    else:
        stock, seen = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not seen["missing_keys"]
        assert not seen["unexpected_keys"]
    for padded in (False, True):
        torch.testing.assert_close(
            stock_logits(stock.eval(), pieces, padded=padded), ours, atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize(
    "kind", ["llama", "granite", "bert", "roberta", "modernbert", "t5", "bart"]
)
@pytest.mark.parametrize("sets", [None, ((), (0,), (1, 2))], ids=["many", "several"])
def test_heads_of_three_classes_have_their_names_size_and_logits_in_stock(
    kind, sets, folders, config_of, tmp_path
):
    names = ("safe", "CWE-79", "CWE-89")
    classes = Classes(names, sets=sets)
    config = config_of(folders(kind), "tuning.method=full")
    model, ours = trained(config, classes=classes)
    assert ours.shape == (len(records()[0]), 3)
    folder = exported(model, config, tmp_path / "full", names)
    assert ours.softmax(1).std(0).min() > 1e-3  # every class is told apart
    auto = AutoModelForSequenceClassification.from_pretrained
    stock = loader_of(folder) if KINDS[kind][4] else auto(folder)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["id2label"] == {str(n): name for n, name in enumerate(names)}
    assert settings["problem_type"] == classes.problem_type
    logits = stock_logits(stock.eval(), records()[0])
    torch.testing.assert_close(logits, ours, atol=TOLERANCE, rtol=0)
    shape = read_shape(config, 3)
    head = [p for n, p in model.model.get_base_model().named_parameters()
            if n.startswith(tuple(f"{path}." for path in KINDS[kind][3]))]  # fmt: skip
    assert shape.num_head_parameters == sum(p.numel() for p in head)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_has_the_same_logits_in_stock_peft(kind, folders, config_of, tmp_path):
    config = config_of(folders(kind), *lora(kind))
    model, ours = trained(config)
    folder, (pieces, _) = exported(model, config, tmp_path / "adapter"), records()
    if KINDS[kind][4]:
        stock = loader_of(folder)
    else:
        facts = json.loads((folder / "focaltune.json").read_text())
        settings = AutoConfig.from_pretrained(folders(kind)).get_text_config()
        settings.num_labels = 2
        base = AutoModelForSequenceClassification.from_pretrained(
            folders(kind), config=settings, key_mapping=facts["key_mapping"]
        )
        stock = PeftModel.from_pretrained(base, folder)
    torch.testing.assert_close(stock_logits(stock.eval(), pieces), ours, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_head_is_drawn_and_trained_whole(kind, folders, config_of):
    config = config_of(folders(kind), *lora(kind))
    base = load_base(config)
    heads = KINDS[kind][3]
    assert head_modules(base) == heads
    assert base.config.num_labels == 2
    saved = {}
    for path in folders(kind).glob("*.safetensors"):
        saved |= load_file(path)
    values = {tuple(value.flatten()[:50].tolist()) for value in saved.values()}
    for name, weight in base.named_parameters():
        if not name.startswith(tuple(f"{path}." for path in heads)):
            assert tuple(weight.flatten()[:50].tolist()) in values, name
    whole = {
        name for name, p in build_model(config).model.get_base_model().named_parameters()
        if p.requires_grad and "lora_" not in name
    }  # fmt: skip
    expected = {n for n, _ in base.named_parameters() if n.startswith(tuple(heads))}
    assert {name.replace(".modules_to_save.default", "") for name in whole} == expected


@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
@pytest.mark.parametrize("kind", ["llama", "mamba", "roberta", "t5", "gemma3"])
def test_a_pooled_state_is_that_of_the_states_by_hand(kind, pooling, folders, config_of, tmp_path):
    config = config_of(folders(kind), "tuning.method=full", f"model.pooling={pooling}")
    if pooling == "first" and kind in ("llama", "mamba", "gemma3"):
        with pytest.raises(ModelError, match="the first token sees only itself"):
            load_base(config)
        return
    model, ours = trained(config)
    folder, (pieces, _) = exported(model, config, tmp_path / "full"), records()
    base = model.model.get_base_model()
    base.set_attn_implementation("eager")
    for piece, logits in zip(pieces, ours, strict=True):
        with torch.no_grad():
            states = base.base_model(input_ids=torch.tensor([piece])).last_hidden_state[0]
            pooled = {"last": states[-1], "first": states[0], "mean": states.mean(0)}[pooling]
            by_hand = base.score.weight @ pooled
        torch.testing.assert_close(logits, by_hand, atol=TOLERANCE, rtol=0)
    has_class = pooling == "last" and kind in ("llama", "gemma3")
    assert (folder / "score.safetensors").is_file() != has_class
    if has_class:
        stock = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        stock = loader_of(folder)
        names = set(safe_open(folder / "model.safetensors", "pt").keys())
        assert not any("score" in name or "pooler" in name for name in names)
    for padded in (False, True):
        torch.testing.assert_close(
            stock_logits(stock.eval(), pieces, padded=padded), ours, atol=TOLERANCE, rtol=0
        )


def test_the_loader_needs_stock_packages_alone(folders, config_of, tmp_path):
    config = config_of(folders("granite"), "tuning.method=full", "model.pooling=mean")
    model, ours = trained(config)
    folder, (pieces, _) = exported(model, config, tmp_path / "full"), records()
    source = (
        "import json, sys, torch; from load_classifier import load; model = load('.');"
        "ids = [torch.tensor([piece]) for piece in json.load(sys.stdin)];"
        "print(json.dumps([model(one, torch.ones_like(one))[0].tolist() for one in ids]))"
    )
    stock = subprocess.run(
        [sys.executable, "-c", source], input=json.dumps(pieces), capture_output=True, text=True,
        check=False, cwd=folder, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    assert stock.returncode == 0, stock.stderr[-2000:]
    printed = json.loads(stock.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(printed), ours, atol=TOLERANCE, rtol=0)


def test_a_merged_adapter_is_a_folder_that_stock_loads(folders, config_of, tmp_path):
    for kind in ("granite", "bert", "gemma3"):
        model, ours = trained(config_of(folders(kind), *lora(kind)))
        model.model.merge_adapter()
        folder = tmp_path / kind
        folder.mkdir()
        save_base(model.model.unload(), folder)
        write_facts(model.model.get_base_model(), folder, {"classes": [0, 1]})
        auto = AutoModelForSequenceClassification.from_pretrained
        stock = loader_of(folder) if KINDS[kind][4] else auto(folder)
        logits = stock_logits(stock.eval(), records()[0])
        torch.testing.assert_close(logits, ours, atol=TOLERANCE, rtol=0)


def test_the_banner_says_what_is_scored(folders, config_of):
    lines = {
        kind: head_line(model.model.get_base_model(), model.pooling)
        for kind in ("llama", "granite", "bert")
        for model in [build_model(config_of(folders(kind), "tuning.lora_r=2"))]
    }
    assert lines == {
        "llama": "score on the last token of a function",
        "granite": "score on the last token of a function; exports bring the code that loads it",
        "bert": "classifier, bert.pooler of BertForSequenceClassification, by its own forward pass",
    }
