"""torch's variable-length kernels give stock's scores and gradients, as far as a CPU can show it.

The operators are emulated under their own schemas (tests/varlen_operators.py); tests/gpu compares
the kernels themselves.
"""

import numpy as np
import pytest
import torch
import varlen_operators
from strategies import proof_settings
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from data.batches.batch import collate
from data.text.tokenization import ExampleSet
from trainer.config.methods import TORCH_EFFICIENT, TORCH_VARLEN
from trainer.config.sections import LossSection
from trainer.models.heads import PackedClassifier, PackedLanguageModel
from trainer.models.packed_attention import MASK, VARLEN, Strategy
from trainer.models.proof import choose_strategy, use
from trainer.tuning.plain import train_all

LLAMA = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
BIG_CODE = {
    "vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MODELS = {
    "llama": LLAMA,  # two heads share keys
    "gpt_bigcode": BIG_CODE,  # all heads share keys
    "mistral": LLAMA | {"sliding_window": 16},
    "gemma2": LLAMA | {"sliding_window": 16, "head_dim": 16},
}
LENGTHS = (37, 5, 120, 64, 1)
ATTENTIONS = pytest.mark.parametrize("attention", [TORCH_VARLEN, TORCH_EFFICIENT])


@pytest.fixture(scope="module", autouse=True)
def operators():
    library = varlen_operators.on_a_cpu()
    yield
    library._destroy()


@pytest.fixture
def examples():
    tokens = np.random.default_rng(0).integers(5, 300, sum(LENGTHS)).astype(np.int32)
    num = len(LENGTHS)
    return ExampleSet(
        tokens, np.cumsum([0, *LENGTHS]), np.arange(num), np.zeros(num, np.int64), np.ones(num),
        np.ones(num, np.float32), num, np.ones(len(tokens), np.bool_),
    )  # fmt: skip


def drawn(kind, auto):
    torch.manual_seed(0)
    base = auto.from_config(AutoConfig.for_model(kind, **MODELS[kind]))
    for parameter in base.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    base.config.pad_token_id = None
    return base.eval()


def proved(kind, attention, examples):
    """The lines of a proof that may choose."""
    base = drawn(kind, AutoModelForCausalLM)
    model = PackedLanguageModel(train_all(base, None), LossSection(backend="torch")).eval()
    settings = proof_settings(attention, is_free=True)
    return choose_strategy(model, model, examples, settings, torch.device("cpu"))


@ATTENTIONS
@pytest.mark.parametrize("kind", ["llama", "gpt_bigcode", "mistral"])
def test_the_proof_takes_it_and_records_stay_apart(kind, attention, examples):
    first, *others = proved(kind, attention, examples)
    assert first.startswith(f"  records    varlen ({attention}): max |diff| to stock = ")
    assert "0.0e+00 when neighbours change" in first
    assert not any("not varlen" in line for line in others)


@ATTENTIONS
def test_a_layer_that_caps_its_scores_is_named_and_goes_another_way(attention, examples):
    first, second, *_ = proved("gemma2", attention, examples)
    assert "native" in first
    assert f"not varlen ({attention}): Gemma2Attention passes softcap" in second


@ATTENTIONS
@pytest.mark.parametrize("kind", ["llama", "gpt_bigcode"])
def test_gradients_are_those_of_an_explicit_mask(kind, attention, examples):
    batch = collate(examples, [np.array([0, 1, 2]), np.array([3, 4])])
    found = {}
    for strategy in (Strategy(MASK, "sdpa"), Strategy(VARLEN, attention)):
        model = PackedClassifier(
            train_all(drawn(kind, AutoModelForSequenceClassification), None)
        ).eval()
        use(model, strategy)
        model(batch)[:, 0].sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found[strategy.name] = torch.cat(grads)
    assert found[MASK].norm() > 1
    assert (found[VARLEN] - found[MASK]).norm() < 1e-6 * found[MASK].norm()
