"""The loss of packed targets is that of transformers' own forward, example by example, in float64.

fp32 through two layers against float64: 1e-5 relative is 80 units in the last place.
"""

import copy

import numpy as np
import pytest
import torch
from example_sets import language_set
from peft import LoraConfig, TaskType, get_peft_model
from strategies import kept_apart

from data.batches.batch import collate
from data.text.tokenization import ExampleSet
from trainer.config.methods import SEGMENT_SDPA
from trainer.config.sections import LossSection
from trainer.models.heads import PackedLanguageModel

VOCABULARY = 61
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
GPT = SIZES | {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 128, "attn_pdrop": 0.0,
    "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.2,
}  # fmt: skip
LLAMA = SIZES | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {
    "gpt2": GPT, "gpt_bigcode": GPT, "llama": LLAMA, "qwen2": LLAMA | {"tie_word_embeddings": True},
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def base(request):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **FAMILIES[request.param])
    return AutoModelForCausalLM.from_config(config).eval()


def examples_of(count: int = 7) -> ExampleSet:
    generator = np.random.default_rng(5)
    lengths = generator.integers(2, 17, count)
    pieces = [generator.integers(1, VOCABULARY, n).tolist() for n in lengths]
    return language_set(pieces, [(np.arange(n) >= n // 3).astype(int).tolist() for n in lengths])


def packed(base, gamma: float = 0.0, attention: str = SEGMENT_SDPA) -> PackedLanguageModel:
    """LoRA that is felt: B is not zero."""
    settings = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear",
        fan_in_fan_out=base.config.model_type == "gpt2",
    )  # fmt: skip
    model = get_peft_model(copy.deepcopy(base), settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    loss = LossSection(gamma=gamma, backend="torch")
    return kept_apart(PackedLanguageModel(model, loss), attention)


def naive(model: PackedLanguageModel, texts: list[tuple[list[int], list[bool]]], gamma: float):
    """Sum, count and LoRA gradients: one text a pass, whole logits."""
    exact = in_float64(model)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for tokens, is_target in texts:
        logits = exact(input_ids=torch.tensor([tokens])).logits[0]
        chances = logits.log_softmax(-1)
        for place in range(1, len(tokens)):
            if is_target[place]:
                log_p = chances[place - 1, tokens[place]]
                total = total - (1 - log_p.exp()) ** gamma * log_p
                count += 1
    (total / count).backward()
    gradients = {n: p.grad for n, p in exact.named_parameters() if p.requires_grad}
    return float(total.detach()), count, gradients


def in_float64(model: PackedLanguageModel):
    """The model as transformers runs it."""
    exact = copy.deepcopy(model.model).double().eval()
    exact.get_base_model().set_attn_implementation("eager")
    return exact


def texts_of(examples: ExampleSet) -> list[tuple[list[int], list[bool]]]:
    places = [slice(*pair) for pair in zip(examples.starts[:-1], examples.starts[1:], strict=True)]
    return [(examples.tokens[p].tolist(), examples.supervised[p].tolist()) for p in places]


def assert_equal_to_naive(model, batches, texts, gamma):
    total, count, expected = naive(model, texts, gamma)
    model.train()
    found = [model(batch) for batch in batches]
    loss = sum(part for part, _ in found)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    assert sum(float(number) for _, number in found) == count == sum(b.count for b in batches)
    (loss / count).backward()
    moved = 0
    for name, parameter in model.model.named_parameters():
        if parameter.requires_grad:
            exact = expected[name]
            moved += float(exact.norm()) > 1e-4
            assert float((parameter.grad.double() - exact).norm()) <= 2e-5 * max(
                1.0, float(exact.norm())
            ), name
    assert moved > 4  # gradients of zero would prove nothing


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_packed_loss_and_gradients_are_those_of_each_example_alone(base, gamma):
    examples = examples_of()
    rows = [np.array([0, 3, 4]), np.array([1]), np.array([2, 5, 6])]
    batches = [collate(examples, rows[:2]), collate(examples, rows[2:]), collate(examples, [])]
    assert_equal_to_naive(packed(base, gamma), batches, texts_of(examples), gamma)


def test_without_isolation_a_row_is_one_text_whose_first_tokens_are_no_targets(base):
    examples = examples_of()
    rows = [np.array([0, 3]), np.array([1, 2])]
    texts = []
    for row in rows:
        parts = [texts_of(examples)[example] for example in row.tolist()]
        tokens = [token for part, _ in parts for token in part]
        texts.append((tokens, [t and n > 0 for _, mask in parts for n, t in enumerate(mask)]))
    batches = [collate(examples, rows, isolate=False)]
    assert_equal_to_naive(packed(base), batches, texts, 0.0)


def test_scores_are_likelihood_margin_and_first_choice(base):
    examples, model = examples_of(), packed(base).eval()
    exact = in_float64(model)
    batch = collate(examples, [np.arange(4), np.arange(4, 7)])
    with torch.no_grad():
        scores_S3 = model(batch)
        expected = []
        for tokens, is_target in texts_of(examples):
            logits = exact(input_ids=torch.tensor([tokens])).logits[0]
            for place in range(1, len(tokens)):
                if is_target[place]:
                    row, label = logits[place - 1], tokens[place]
                    others = torch.cat([row[:label], row[label + 1 :]])
                    nll = float(-row.log_softmax(-1)[label])
                    margin = float(row[label] - others.max())
                    expected.append([nll, margin, float(row.argmax())])
    assert np.allclose(scores_S3.numpy(), np.array(expected), rtol=1e-4, atol=1e-4)
    assert len({row[2] for row in expected}) > 1
