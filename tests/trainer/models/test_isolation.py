"""Packed functions do not see each other, for every model family and attention back end."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from data.batches.batch import collate
from data.text.tokenization import ExampleSet
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.models.heads import PackedClassifier
from trainer.models.isolation import check_isolation, refuse_leaking
from trainer.models.packed_attention import attention_inputs
from trainer.tuning.peft_layers import add_lora

VOCABULARY = 300
LENGTHS = (37, 5, 120, 64, 1, 90)
# fp32 sums in another order, through two layers with logits of about 1.
TOLERANCE = 1e-5

GPT_LIKE = {
    "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LLAMA_LIKE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
FAMILIES = {
    "gpt2": GPT2Config(**GPT_LIKE),
    "gpt_bigcode": GPTBigCodeConfig(**GPT_LIKE),
    "gpt_bigcode, many heads": GPTBigCodeConfig(**GPT_LIKE, multi_query=False),
    "llama": LlamaConfig(**LLAMA_LIKE),
    "qwen2": Qwen2Config(**LLAMA_LIKE),
}
BACK_ENDS = ["eager", "sdpa", "segment_sdpa"]


def functions(lengths=LENGTHS, seed=0):
    tokens = np.random.default_rng(seed).integers(5, VOCABULARY, sum(lengths)).astype(np.int32)
    count = len(lengths)
    return ExampleSet(
        tokens, np.cumsum([0, *lengths]), np.arange(count), np.zeros(count, np.int64),
        np.ones(count), np.ones(count), count,
    )  # fmt: skip


def classifier(config, attention):
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    for parameter in base.parameters():
        if parameter.ndim > 1:  # large enough that a leak could not hide
            torch.nn.init.normal_(parameter, std=0.08)
    base.config.pad_token_id = None
    model = PackedClassifier(add_lora(base, TuningSection(lora_r=4)), attention)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def alone(model, examples):
    """Logits of each function in a plain forward pass: no packing, no mask, no positions."""
    inner = model.model.get_base_model()
    inner.config._attn_implementation = "sdpa"
    logits = []
    for index in range(len(examples)):
        tokens = examples.tokens[examples.starts[index] : examples.starts[index + 1]]
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        hidden = inner.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits.append(inner.score(hidden[:, -1]))
    inner.config._attn_implementation = model.attention
    return torch.cat(logits)


@pytest.mark.parametrize("attention", BACK_ENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_equal_unpacked_logits(family, attention):
    model, examples = classifier(FAMILIES[family], attention), functions()
    rows = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    with torch.no_grad():
        packed, separate = model(collate(examples, rows)), alone(model, examples)
    assert separate.std() > 0.1  # functions differ, so a mixed-up order would show
    torch.testing.assert_close(packed, separate, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("attention", BACK_ENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_gradients_equal_unpacked_gradients(family, attention):
    model, examples = classifier(FAMILIES[family], attention).train(), functions()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained = [p for p in model.parameters() if p.requires_grad]

    def gradients(rows_of_batches):
        loss = sum(model(collate(examples, rows)).square().sum() for rows in rows_of_batches)
        return torch.autograd.grad(loss, trained)

    packed = gradients([[np.array([0, 1, 2]), np.array([3, 4, 5])]])
    separate = gradients([[np.array([index])] for index in range(len(LENGTHS))])
    for ours, theirs in zip(packed, separate, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-9


@pytest.mark.parametrize("attention", BACK_ENDS)
def test_the_self_check_passes_what_is_isolated(attention):
    model = classifier(FAMILIES["gpt_bigcode"], attention)
    check = check_isolation(model, functions(), 256, torch.device("cpu"))
    refuse_leaking(check, "fp32")
    assert check.num_functions >= 4
    assert check.neighbour_difference == 0.0
    assert check.own_difference > 1e-3


def test_the_self_check_refuses_a_model_whose_functions_see_each_other():
    model = classifier(FAMILIES["llama"], "sdpa")

    def leaking(batch):
        inner = model.model.get_base_model()
        hidden = inner.base_model(
            input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT,
            attention_mask=torch.ones_like(batch.input_ids_BT), use_cache=False,
        ).last_hidden_state  # fmt: skip
        return inner.score(hidden[batch.row_S, batch.read_S])

    check = check_isolation(leaking, functions(), 256, torch.device("cpu"))
    assert check.neighbour_difference > 1e-3
    with pytest.raises(ModelError, match=r"data\.packing=false"):
        refuse_leaking(check, "fp32")


def test_the_self_check_refuses_a_sliding_window_the_mask_would_hide():
    config = MistralConfig(**LLAMA_LIKE, sliding_window=16)
    model = classifier(config, "sdpa")

    def windowed_alone(batch):
        # The model's own way for one function, ours for several: they differ beyond the window.
        if len(batch.example_S) == 1:
            inner = model.model.get_base_model()
            hidden = inner.base_model(input_ids=batch.input_ids_BT, use_cache=False)
            return inner.score(hidden.last_hidden_state[batch.row_S, batch.read_S])
        return model(batch)

    check = check_isolation(windowed_alone, functions(), 256, torch.device("cpu"))
    assert check.packed_difference > 1e-3
    assert check.neighbour_difference < 1e-5  # so the comparison with each function alone found it
    with pytest.raises(ModelError, match=r"allowed 1e-04 and 1e-05\. .* data\.packing=false"):
        refuse_leaking(check, "fp32")


def test_the_self_check_refuses_a_model_that_is_deaf_to_its_input():
    def deaf(batch):
        return torch.zeros(len(batch.example_S), 2)

    check = check_isolation(deaf, functions(), 256, torch.device("cpu"))
    with pytest.raises(ModelError, match="do not depend on its input"):
        refuse_leaking(check, "fp32")


def test_an_explicit_mask_is_used_not_the_positions_alone():
    batch = collate(functions(), [np.array([0, 1])])
    inputs = attention_inputs(batch, "eager", torch.float32)
    mask = inputs["attention_mask"][0, 0]
    assert inputs["use_cache"] is False
    assert mask[36, 0] == 0  # a token sees the beginning of its function
    assert mask[0, 36] < -1e30  # not the future
    assert mask[37, 36] < -1e30  # not the function before
