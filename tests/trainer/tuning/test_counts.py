"""Trained parameters of every method on the StarCoderBase sizes, against the published table."""

import pytest
import torch
import transformers

from trainer.architectures.adapters import num_adapter_parameters, num_head_parameters
from trainer.architectures.families import model_shape
from trainer.config.sections import TuningSection
from trainer.tuning import METHODS

# Astraios (Zhuo et al. 2024): name -> hidden, layers, heads.
SIZES = {"1B": (2048, 24, 16), "3B": (2816, 36, 22), "7B": (4096, 42, 32), "16B": (6144, 40, 48)}
BASE = {"1B": 1_137_207_296, "3B": 3_043_311_104, "7B": 7_327_263_232, "16B": 15_517_456_384}
# method -> what the study sets, trained parameters by size
TABLE = {
    "full": ({}, BASE),
    "lora": (
        {"lora_r": 8, "target_modules": ["c_proj", "c_attn"]},  # its q_attn matches nothing here
        {"1B": 3_588_096, "3B": 7_372_800, "7B": 12_472_320, "16B": 17_776_640},
    ),
    "ia3": (
        {"target_modules": ["c_attn", "mlp.c_proj"]},
        {"1B": 251_904, "3B": 516_096, "7B": 870_912, "16B": 1_239_040},
    ),
    "ptuning": (
        {"adapter_size": 30},
        {"1B": 12_650_496, "3B": 23_882_496, "7B": 50_466_816, "16B": 113_448_960},
    ),
    "adapter_h": (
        {"adapter_size": 256, "target_modules": ["c_fc", "mlp.c_proj"]},
        {"1B": 50_331_648, "3B": 103_809_024, "7B": 176_160_768, "16B": 251_658_240},
    ),
    "adapter_p": (
        {"adapter_size": 256, "target_modules": ["mlp.c_proj"]},
        {"1B": 25_165_824, "3B": 51_904_512, "7B": 88_080_384, "16B": 125_829_120},
    ),
    "parallel": (
        {"adapter_size": 256, "target_modules": ["c_attn"]},
        {"1B": 26_738_688, "3B": 54_263_808, "7B": 90_832_896, "16B": 128_450_560},
    ),
}


def starcoder(size, kind=transformers.AutoModelForCausalLM):
    """A model without weights, and its configuration."""
    hidden, layers, heads = SIZES[size]
    config = transformers.GPTBigCodeConfig(
        n_embd=hidden, n_layer=layers, n_head=heads, n_inner=4 * hidden, vocab_size=49152,
        n_positions=8192, multi_query=True, bos_token_id=0, eos_token_id=0, num_labels=2,
    )  # fmt: skip
    with torch.device("meta"):
        return kind.from_config(config), config


def num_trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def tuned(base, **settings):
    section = TuningSection(**settings)
    with torch.device("meta"):
        return METHODS[section.method](base, section), section


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", TABLE)
def test_a_method_trains_the_published_number_of_parameters(method, size):
    base, config = starcoder(size)
    assert sum(p.numel() for p in base.parameters()) == BASE[size]
    settings, expected = TABLE[method]
    model, section = tuned(base, method=method, **settings)
    assert num_trained(model) == expected[size]
    assert num_adapter_parameters(model_shape(config.to_dict()), section) == expected[size]


@pytest.mark.parametrize("method", ["ia3", "ptuning", "adapter_h", "adapter_p", "parallel"])
def test_the_settings_of_the_study_are_the_defaults(method):
    model, _ = tuned(starcoder("1B")[0], method=method)
    assert num_trained(model) == TABLE[method][1]["1B"]


def test_the_vulnerability_recipe_adapts_attention_mlp_and_head():
    """8 x (14 d + 256) x 40 in the blocks and 8 x (d + 2) at the head, d = 6144."""
    base, config = starcoder("16B", transformers.AutoModelForSequenceClassification)
    model, section = tuned(base, target_modules=["c_attn", "c_proj", "c_fc", "score"], lora_r=8)
    assert num_trained(model) == 27_656_208
    shape = model_shape(config.to_dict())
    planned = num_adapter_parameters(shape, section) + num_head_parameters(shape, section)
    assert planned == 27_656_208


@pytest.mark.parametrize("method", TABLE)
def test_a_classifier_trains_its_head_beside_the_method(method):
    language, _ = tuned(starcoder("1B")[0], method=method)
    classifier, _ = tuned(
        starcoder("1B", transformers.AutoModelForSequenceClassification)[0], method=method
    )
    assert num_trained(classifier) - num_trained(language) == 2 * 2048


@pytest.mark.parametrize(
    ("settings", "formula"),
    [  # one block of GPT-2: c_attn 16 -> 48, c_proj 16 -> 16, c_fc 16 -> 64, c_proj 64 -> 16
        ({"variant": "rslora", "lora_r": 2}, 2 * (64 + 32 + 80 + 80)),
        ({"variant": "dora", "lora_r": 2}, 2 * (64 + 32 + 80 + 80) + 48 + 16 + 64 + 16),
        ({"method": "ia3"}, 48 + 64),
        ({"method": "adapter_h", "adapter_size": 5}, 2 * 5 * 16 + 2 * 5 * 16),
        ({"method": "adapter_h", "adapter_size": 5, "target_modules": ["c_proj"]}, 2 * 160),
        ({"method": "parallel", "adapter_size": 5}, 5 * (16 + 48)),
    ],
)
def test_small_counts_by_hand_and_of_the_planner(settings, formula):
    config = transformers.GPT2Config(
        n_embd=16, n_layer=3, n_head=2, vocab_size=20, bos_token_id=0, eos_token_id=0
    )
    with torch.device("meta"):
        base = transformers.AutoModelForCausalLM.from_config(config)
    model, section = tuned(base, **settings)
    assert num_trained(model) == 3 * formula
    assert num_adapter_parameters(model_shape(config.to_dict()), section) == 3 * formula


@pytest.mark.parametrize("method", TABLE)
def test_the_planner_counts_llama_too(method):
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, num_labels=2,
    )  # fmt: skip
    with torch.device("meta"):
        base = transformers.AutoModelForSequenceClassification.from_config(config)
    model, section = tuned(base, method=method)
    shape = model_shape(config.to_dict())
    planned = num_adapter_parameters(shape, section) + num_head_parameters(shape, section)
    assert num_trained(model) == planned > 0
