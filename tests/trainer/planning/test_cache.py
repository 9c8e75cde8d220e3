"""The planned cache is the one that the model keeps, to the byte, and a peak where it is one."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM

from trainer.architectures.families import FAMILIES, model_shape
from trainer.config.machines import DEVICES, Machine
from trainer.config.recipe import load_run_config
from trainer.models.writing import Texts, last_states
from trainer.planning.memory import cache_bytes, memory_of
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve
from trainer.tuning.plain import PlainModel

KINDS = ["gpt2", "gpt_bigcode", "llama", "qwen2", "mistral", "qwen3", "phi3", "gpt_neox", "olmo2"]
TEXTS = [[5, 6, 7], [8] * 11, [9] * 7]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_of_three_texts_is_the_planned_one_to_the_byte(kind, dtype):
    config = tiny_config(kind)
    base = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    part = Texts.of(TEXTS, torch.device("cpu"))
    with torch.no_grad():
        last_states(PlainModel(base), part)
        after = part.followed_by(torch.tensor([[1], [2], [3]]))
        last_states(PlainModel(base), after)
    layers = after.cache["past_key_values"].layers
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    shape = model_shape(json.loads(config.to_json_string(use_diff=False)), is_language=True)
    assert (kind in FAMILIES) is (KINDS.index(kind) < 5)  # by formula, and seen in the model
    padded = len(TEXTS) * (max(map(len, TEXTS)) + 1)
    assert measured == cache_bytes(shape, padded, dtype.itemsize)
    assert measured > 0


def test_answers_at_a_validation_are_the_peak_where_their_cache_is_above_what_training_keeps(
    tmp_path,
):
    """Code Llama 13B with its 16,384 tokens: 2 bytes x 40 blocks x 2 x 5,120 x tokens."""
    config = {"model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824,
              "num_attention_heads": 40, "num_hidden_layers": 40, "vocab_size": 32016}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"run: {{output_dir: {tmp_path / 'run'}}}\n")
    config = load_run_config(
        recipe,
        [f"model.config={tmp_path}", "data.tokenizer=data/samples/model", "data.seq_length=16384",
         "data.train=a", "data.valid=a", "data.test=a", "task.name=instruction",
         "tuning.method=lora", "optim.max_steps=1", "optim.micro_batch_size=1",
         "engine.precision=bf16", "model.gradient_checkpointing=true"],
    )  # fmt: skip
    job = resolve(config, read_shape(config), Machine(DEVICES["A100-80"], 1))
    written = memory_of(job)
    assert written.cache == 2 * 40 * 2 * 5120 * 16384
    assert written.activations == 0
    trained = memory_of(job.changed("optim", micro_batch_size=4))  # a row of answers all the same
    assert trained.cache == 0
    assert trained.activations > written.cache
    detector = memory_of(replace(job, config=job.config.changed("task", name="classification")))
    assert detector.cache == 0
