"""Packed records give the scores of stock's own forward pass, or the model does not train."""

import numpy as np
import pytest
import torch
from strategies import BACK_ENDS, kept_apart, proof_settings
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from data.batches.batch import collate
from data.text.tokenization import ExampleSet
from trainer.config.sections import LossSection, TuningSection
from trainer.errors import ModelError
from trainer.models.heads import PackedClassifier, PackedLanguageModel, read_states
from trainer.models.packed_attention import MASK, NATIVE, ROWS, VARLEN, Strategy, packed_inputs
from trainer.models.proof import choose_strategy, use
from trainer.tuning.peft_layers import add_lora
from trainer.tuning.plain import train_all

VOCABULARY = 300
LENGTHS = (37, 5, 120, 64, 1, 90)
# fp32 sums in another order, through two layers with logits of about 1.
TOLERANCE = 1e-5
CPU = torch.device("cpu")

GPT_LIKE = {
    "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LLAMA_LIKE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
MANY_HEADS = "gpt_bigcode, many heads"
OLD_FAMILIES = {
    "gpt2": GPT_LIKE,
    "gpt_bigcode": GPT_LIKE,
    MANY_HEADS: GPT_LIKE | {"multi_query": False},
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
}
# Of every kind one that asks for more than a mask: windows in all or some layers, sinks, softcaps,
# scaled and capped logits, position biases, state-space layers, attention that cannot be chosen.
KINDS = {
    "mistral": (LLAMA_LIKE | {"sliding_window": 16}, VARLEN),
    "gemma3_text": (LLAMA_LIKE | {"sliding_window": 16, "head_dim": 16}, VARLEN),
    "gemma2": (
        LLAMA_LIKE | {"sliding_window": 16, "head_dim": 16, "final_logit_softcapping": 3.0}, NATIVE,
    ),
    "granite": (LLAMA_LIKE | {"logits_scaling": 6.0, "pad_token_id": 0}, VARLEN),
    "cohere": (LLAMA_LIKE | {"logit_scale": 0.3, "pad_token_id": 0}, VARLEN),
    "gpt_neo": (
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2, "num_heads": 4,
         "attention_types": [[["global", "local"], 1]], "window_size": 16,
         "max_position_embeddings": 512, "attention_dropout": 0.0, "embed_dropout": 0.0,
         "resid_dropout": 0.0}, NATIVE,
    ),
    "gpt_oss": (
        LLAMA_LIKE | {"sliding_window": 16, "head_dim": 16, "num_local_experts": 4}, ROWS,
    ),
    "bloom": ({"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4}, ROWS),
    "mamba": (
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 4},
        ROWS,
    ),
}  # fmt: skip


def functions(lengths=LENGTHS, seed=0, supervised=False):
    tokens = np.random.default_rng(seed).integers(5, VOCABULARY, sum(lengths)).astype(np.int32)
    count = len(lengths)
    return ExampleSet(
        tokens, np.cumsum([0, *lengths]), np.arange(count), np.zeros(count, np.int64),
        np.ones(count), np.ones(count, np.float32), count,
        np.ones(len(tokens), np.bool_) if supervised else None,
    )  # fmt: skip


def drawn(kind, auto, **sizes):
    """A model of random weights, large enough that a leak could not hide."""
    torch.manual_seed(0)
    base = auto.from_config(AutoConfig.for_model(kind.partition(",")[0], **sizes))
    for parameter in base.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    base.config.pad_token_id = None
    return base.eval()


def classifier(family):
    base = drawn(family, AutoModelForSequenceClassification, **OLD_FAMILIES[family])
    model = PackedClassifier(add_lora(base, TuningSection(lora_r=4)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def language_model(kind, **more):
    base = drawn(kind, AutoModelForCausalLM, **KINDS[kind][0] | more)
    return PackedLanguageModel(train_all(base, None), LossSection(backend="torch")).eval()


def test_a_base_that_overflows_in_fp16_is_named_with_its_layer_and_what_to_do():
    """In fp32 the same weights are sound, so no learning rate is to blame."""
    model = language_model("granite")
    with torch.no_grad():
        model.model.get_base_model().model.layers[1].mlp.up_proj.weight.mul_(1e6)
    examples = functions(supervised=True)
    settings = proof_settings()
    choose_strategy(model, model, examples, settings, CPU)
    half = model.half()
    with pytest.raises(
        ModelError, match=r"not finite, first behind .*layers\.1\.mlp.*=fp32, a GPU"
    ):
        choose_strategy(half, half, examples, proof_settings(precision="fp16"), CPU)


def texts(examples):
    for first, last in zip(examples.starts[:-1], examples.starts[1:], strict=True):
        yield torch.from_numpy(examples.tokens[first:last].astype(np.int64))[None]


def alone(model, examples):
    """Logits of each function in a plain forward pass: no packing, no mask, no positions."""
    use(model, model.stock)
    inner = model.model.get_base_model()
    hidden = [inner.base_model(input_ids=ids).last_hidden_state[:, -1] for ids in texts(examples)]
    return inner.score(torch.cat(hidden))


@pytest.mark.parametrize("attention", BACK_ENDS)
@pytest.mark.parametrize("family", OLD_FAMILIES)
def test_packed_logits_equal_unpacked_logits(family, attention):
    model, examples = classifier(family), functions()
    rows = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    with torch.no_grad():
        separate = alone(model, examples)
        packed = kept_apart(model, attention)(collate(examples, rows))
    assert separate.std() > 0.1  # functions differ, so a mixed-up order would show
    torch.testing.assert_close(packed, separate, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("strategy", [*BACK_ENDS, ROWS])
@pytest.mark.parametrize("family", OLD_FAMILIES)
def test_packed_gradients_equal_unpacked_gradients(family, strategy):
    model, examples = classifier(family).train(), functions()
    use(model, Strategy(ROWS, "sdpa")) if strategy == ROWS else kept_apart(model, strategy)
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


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_strategy_that_equals_stock_is_taken(kind):
    model, examples = language_model(kind), functions(supervised=True)
    lines = choose_strategy(model, model, examples, proof_settings(is_free=True), CPU)
    assert model.strategy.name == KINDS[kind][1]
    assert lines[0].strip().startswith(f"records    {model.strategy}: max |diff| to stock")
    # Nothing of ours: the loss that transformers' own forward gives for each text.
    batch = collate(examples, [np.array([0, 1, 2]), np.array([3, 4, 5])])
    with torch.no_grad():
        ours = float(model(batch)[:, 0].sum())
        whole, own = model.model.get_base_model(), 0.0
        use(model, model.stock)
        for ids in texts(examples):
            logits = whole(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            own -= float(logits.gather(1, ids[0, 1:, None]).sum())
    assert ours == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_what_a_model_does_to_its_logits_reaches_the_gradient(kind):
    model, examples = language_model(kind), functions(supervised=True)
    choose_strategy(model, model, examples, proof_settings(is_free=True), CPU)
    weight = model.model.get_base_model().base_model.layers[0].mlp.up_proj.weight
    total, _ = model.train()(collate(examples, [np.array([2, 0]), np.array([3])]))
    (ours,) = torch.autograd.grad(total, weight)
    use(model.eval(), model.stock)
    own = torch.zeros(())
    for ids in [list(texts(examples))[n] for n in (2, 0, 3)]:
        logits = model.model.get_base_model()(input_ids=ids).logits[0, :-1].log_softmax(-1)
        own = own - logits.gather(1, ids[0, 1:, None]).sum()
    (theirs,) = torch.autograd.grad(own, weight)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_longest_record_of_the_proof_exceeds_the_windows_of_the_model():
    model, examples = language_model("mistral", sliding_window=150), functions(supervised=True)
    [line] = choose_strategy(model, model, examples, proof_settings(is_free=True), CPU)
    assert "up to 182 tokens" in line  # none of the six is longer than 120
    settings = proof_settings(is_free=True, seq_length=151)
    _, more = choose_strategy(model, model, examples, settings, CPU)
    assert more.strip() == "the proof does not reach beyond 150 tokens"


def test_lengths_that_change_each_other_share_no_pass():
    # Dynamic rotary scaling follows the longest record of a forward pass.
    more = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64}
    base = drawn("llama", AutoModelForCausalLM, **LLAMA_LIKE | more)
    model = PackedLanguageModel(train_all(base, None), LossSection(backend="torch")).eval()
    examples = functions(supervised=True)
    lines = choose_strategy(model, model, examples, proof_settings(is_free=True), CPU)
    assert model.strategy == Strategy(ROWS, "sdpa", most_padding=0.0)
    assert [line.split()[1] for line in lines[1:]] == ["varlen", "mask", "native", "rows"]


def test_an_explicit_mask_that_hides_a_window_does_not_prove_itself():
    model, examples = language_model("mistral"), functions(supervised=True)
    batch = collate(examples, [np.array([0, 2])])
    base = model.model
    with torch.no_grad():
        states = [
            read_states(base, batch, strategy)
            for strategy in (Strategy(MASK, "sdpa"), Strategy(NATIVE, "sdpa"), model.stock)
        ]
    assert (states[0] - states[2]).abs().max() > 0.01
    assert (states[1] - states[2]).abs().max() < TOLERANCE


def test_a_back_end_of_the_recipe_that_does_not_hold_is_refused_with_the_way_out():
    model, examples = language_model("gpt_oss"), functions(supervised=True)
    with pytest.raises(ModelError, match=r"gpt_oss: packed .* set model\.attention=auto"):
        choose_strategy(model, model, examples, proof_settings(), CPU)


def test_a_layer_that_passes_what_is_not_passed_on_is_named():
    model, examples = language_model("mistral"), functions(supervised=True)
    layer = model.model.get_base_model().base_model.layers[0].self_attn
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs, s_aux=torch.ones(4))
    lines = choose_strategy(model, model, examples, proof_settings(is_free=True), CPU)
    assert any("not varlen (segment_sdpa): MistralAttention passes s_aux" in one for one in lines)
    assert model.strategy.name == NATIVE


def test_a_model_whose_records_see_each_other_does_not_train():
    model, examples = classifier("llama"), functions()

    def leaking(batch):
        if model.strategy == model.stock:
            return model(batch)
        inner = model.model.get_base_model()
        inner.set_attn_implementation("sdpa")
        hidden = inner.base_model(input_ids=batch.input_ids_BT).last_hidden_state
        return inner.score(hidden[batch.row_S, batch.read_S])

    settings = proof_settings(is_free=True, equal_passes=True)
    with pytest.raises(ModelError, match=r"llama: packed .* take ZeRO 0 to 2"):
        choose_strategy(leaking, model, examples, settings, CPU)


def test_a_model_that_is_deaf_to_its_input_is_refused():
    model = classifier("llama")
    with pytest.raises(ModelError, match="do not depend on its input"):
        choose_strategy(
            lambda batch: torch.zeros(len(batch.example_S), 2), model, functions(),
            proof_settings(), CPU,
        )  # fmt: skip


def test_an_encoder_does_not_learn_to_predict_tokens():
    sizes = {key: LLAMA_LIKE[key] for key in list(LLAMA_LIKE)[:5]}
    base = drawn("bert", AutoModelForCausalLM, **sizes)
    model = PackedLanguageModel(train_all(base, None), LossSection(backend="torch")).eval()
    with pytest.raises(ModelError, match=r"bert: its tokens see later tokens"):
        choose_strategy(model, model, functions(supervised=True), proof_settings(), CPU)


def test_records_of_rows_of_their_own_are_proved_too():
    model, examples = classifier("qwen2"), functions()
    settings = proof_settings(is_free=True, packing=False)
    [line] = choose_strategy(model, model, examples, settings, CPU)
    assert "varlen (segment_sdpa)" in line


def test_a_mask_keeps_functions_and_their_future_apart():
    batch = collate(functions(), [np.array([0, 1])])
    inputs = packed_inputs(batch, Strategy(MASK, "eager"), torch.float32)
    mask = inputs["attention_mask"][0, 0]
    assert inputs["use_cache"] is False
    assert mask[36, 0] == 0  # a token sees the beginning of its function
    assert mask[0, 36] < -1e30  # not the future
    assert mask[37, 36] < -1e30  # not the function before
