"""Every tuning method on every family: what it trains, isolates, keeps, continues and merges."""

import json

import numpy as np
import pytest
import torch
import transformers
from example_sets import example_set
from method_cases import FAMILIES, METHODS, model_config, tuning
from peft import PeftModel
from safetensors.torch import load_file, save_file
from strategies import BACK_ENDS, kept_apart, proof_settings
from transformers import AutoModelForSequenceClassification

from data.batches.batch import collate
from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError, ModelError
from trainer.models.heads import PackedClassifier, prompted
from trainer.models.proof import choose_strategy
from trainer.run_folder.model import save_model
from trainer.tuning import METHODS as FUNCTIONS
from trainer.tuning.bottleneck import BottleneckLinear
from trainer.tuning.continued import take_adapter

LENGTHS = (37, 5, 90, 64, 1, 30)
GRID = [(method, family) for method in METHODS for family in FAMILIES]


def base_of(family):
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(model_config(family))
    base.config.pad_token_id = None
    return base


def classifier(name, family, attention="segment_sdpa", seed=1, is_fresh=False, **more):
    """A model whose adapters, drawn from a seed, change what it says."""
    section = tuning(name, **more)
    tuned = FUNCTIONS[section.method](base_of(family), section)
    model = kept_apart(PackedClassifier(tuned), attention)
    torch.manual_seed(seed)
    for _, parameter in sorted(trained(model).items()):
        if not is_fresh:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def functions():
    draw = np.random.default_rng(0)
    return example_set([draw.integers(5, 2048, length).tolist() for length in LENGTHS])


def rows(method):
    """Three functions in a row, or one where the method wants it so."""
    alone = [np.array([index]) for index in range(len(LENGTHS))]
    return alone if method == "ptuning" else [np.array([0, 1, 2]), np.array([3, 4, 5])]


def logits(model, method):
    with torch.no_grad():
        return model(collate(functions(), rows(method)))


@pytest.mark.parametrize(("method", "family"), GRID)
def test_a_step_changes_all_that_is_trained_and_nothing_else(method, family):
    model = classifier(method, family).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trained(model).values(), lr=1.0)
    model(collate(functions(), rows(method))).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(trained(model))
    assert any("score" in name for name in moved)


@pytest.mark.parametrize("attention", BACK_ENDS)
@pytest.mark.parametrize(("method", "family"), [case for case in GRID if case[0] != "ptuning"])
def test_packed_functions_are_isolated(method, family, attention):
    model = classifier(method, family, attention)
    lines = choose_strategy(
        model, model, functions(), proof_settings(attention), torch.device("cpu")
    )
    assert len(lines) == 1  # the first strategy of the back end holds
    assert "6 records of up to 90 tokens" in lines[0]
    assert "0.0e+00 when neighbours change" in lines[0]


@pytest.mark.parametrize("attention", BACK_ENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_virtual_tokens_stand_before_each_function_as_peft_puts_them(family, attention):
    model, examples = classifier("ptuning", family, attention), functions()
    padded = logits(model, "ptuning")  # rows of one width: each has padding of its own
    plain = classifier("ptuning", family, "sdpa").model
    for index, length in enumerate(LENGTHS):
        ids = torch.from_numpy(examples.tokens[examples.starts[index] :][:length].astype(np.int64))
        with torch.no_grad():
            theirs = plain(input_ids=ids[None], attention_mask=torch.ones(1, length))
        # fp32 sums in another order, through two layers with logits of about 1.
        torch.testing.assert_close(padded[index], theirs.logits[0], rtol=0, atol=1e-5)
    assert padded.std() > 0.1
    assert (
        padded - logits(classifier("ptuning", family, attention, seed=2), "ptuning")
    ).std() > 0.1


def test_virtual_tokens_belong_to_the_first_segment_of_their_row():
    batch = collate(example_set([[7] * 8, [7] * 3]), [np.array([0]), np.array([1])])
    longer = prompted(batch, 2)
    assert batch.segment_lengths == (8, 3, 5)
    assert longer.segment_lengths == (10, 5, 5)
    assert longer.position_ids_BT.tolist()[1] == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert longer.segment_ids_BT.tolist()[1] == [0] * 5 + [1] * 5


def test_ptuning_with_packing_is_refused_with_what_to_take(base):
    with pytest.raises(ConfigError, match=r"virtual tokens .* take data\.packing=false"):
        load_run_config(base, ["tuning.method=ptuning"])
    assert load_run_config(base, ["tuning.method=ptuning", "data.packing=false"])


@pytest.mark.parametrize(("method", "family"), GRID)
def test_saved_weights_make_another_start_the_same_model(method, family, tmp_path):
    model, fresh = classifier(method, family), classifier(method, family, seed=2)
    weights = {name: p.detach().float() for name, p in trained(model).items()}
    save_model(model.model, weights, tmp_path / "adapter", {"task": "classification"})
    before = logits(fresh, method)
    take_adapter(fresh.model, tmp_path / "adapter")
    assert torch.equal(logits(fresh, method), logits(model, method))
    assert not torch.equal(before, logits(fresh, method))
    assert json.loads((tmp_path / "adapter" / "focaltune.json").read_text())


@pytest.mark.parametrize(("family", "name"), [("gpt2", "wte"), ("llama", "embed_tokens")])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_a_module_is_trained_whole_beside_every_method(method, family, name, tmp_path):
    model = classifier(method, family, modules_to_save=[name])
    [weight] = [p for n, p in trained(model).items() if name in n]
    assert weight.shape == (2048, 32)
    weights = {n: p.detach().float() for n, p in trained(model).items()}
    save_model(model.model, weights, tmp_path / "adapter", {})
    fresh = classifier(method, family, seed=2, modules_to_save=[name])
    take_adapter(fresh.model, tmp_path / "adapter")
    assert torch.equal(logits(fresh, method), logits(model, method))
    with pytest.raises(ModelError, match=r"'no' matches no module; the model has"):
        classifier(method, family, modules_to_save=["no"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["full", "lora", "rslora", "dora", "ia3"])
def test_merged_weights_give_the_same_logits(method, family):
    model = classifier(method, family)
    expected = logits(model, method)
    model.model.merge_adapter()
    plain = model.model.unload()
    hidden = [
        plain.base_model(input_ids=torch.from_numpy(tokens)[None], use_cache=False,
                         segment_lengths=(len(tokens),)).last_hidden_state[0, -1]
        for tokens in np.split(functions().tokens.astype(np.int64), functions().starts[1:-1])
    ]  # fmt: skip
    # Merging rounds every weight of the sum once more.
    torch.testing.assert_close(plain.score(torch.stack(hidden)), expected, rtol=0, atol=2e-5)


def expected_places(family, method):
    if family.startswith("gpt"):
        return {"adapter_h": {"mlp.c_fc": "input", "mlp.c_proj": "output"},
                "adapter_p": {"mlp.c_proj": "output"},
                "parallel": {"attn.c_attn": "beside"}}[method]  # fmt: skip
    attention = {f"self_attn.{name}_proj": "beside" for name in "qkv"}
    up = {"mlp.gate_proj": "input", "mlp.up_proj": "input"}
    return {"adapter_h": up | {"mlp.down_proj": "output"},
            "adapter_p": {"mlp.down_proj": "output"}, "parallel": attention}[method]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["adapter_h", "adapter_p", "parallel"])
def test_bottleneck_adapters_stand_where_the_literature_puts_them(method, family):
    model = classifier(method, family)
    assert model.model.settings.places == expected_places(family, method)
    layers = [m for m in model.modules() if isinstance(m, BottleneckLinear)]
    assert len(layers) == 2 * len(model.model.settings.places)


@pytest.mark.parametrize("place", ["input", "output", "beside"])
def test_the_bottleneck_is_its_formula(place):
    """In float64, written out; as identity it is the layer itself."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 9).double()
    adapter = BottleneckLinear(layer, place, 4, 0.0, is_identity=True).double()
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    z = x @ layer.weight.T + layer.bias
    assert torch.equal(adapter(x), layer(x))
    adapter.adapter_up.weight.data.normal_()
    down, up = adapter.adapter_down.weight, adapter.adapter_up.weight
    assert down.shape == (4, 9 if place == "output" else 7)
    assert up.shape == (7 if place == "input" else 9, 4)
    read = z if place == "output" else x
    added = torch.tanh(read @ down.T) @ up.T
    expected = (x + added) @ layer.weight.T + layer.bias if place == "input" else z + added
    torch.testing.assert_close(adapter(x), expected, rtol=1e-12, atol=1e-12)
    assert (adapter(x) - z).abs().max() > 1e-3


def test_llm_adapters_draw_both_matrices():
    adapter = BottleneckLinear(torch.nn.Linear(64, 64), "output", 64, 0.0, is_identity=False)
    for matrix in (adapter.adapter_down.weight, adapter.adapter_up.weight):
        # 4,096 draws of N(0, 0.02): the deviation is known to 1.1%, the mean to 0.0003.
        assert matrix.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(matrix.mean().item()) < 0.0015


@pytest.mark.parametrize("method", ["adapter_h", "parallel", "lora", "ia3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_method_says_what_the_base_says(method, family):
    model = classifier(method, family, is_fresh=True)
    plain = kept_apart(PackedClassifier(FUNCTIONS["full"](base_of(family), tuning("full")))).eval()
    assert torch.equal(logits(model, method), logits(plain, method))


def test_llm_adapters_do_not_start_as_identity():
    model = classifier("adapter_p", "gpt2", is_fresh=True)
    plain = classifier("adapter_p", "gpt2", is_fresh=True, variant="plain")
    assert (logits(model, "adapter_p") - logits(plain, "adapter_p")).abs().max() > 1e-4


def test_adapters_of_32_bit_stand_over_a_16_bit_base():
    for method in ("adapter_h", "parallel", "ia3", "ptuning"):
        section = tuning(method)
        base = base_of("llama").bfloat16()
        model = kept_apart(PackedClassifier(FUNCTIONS[section.method](base, section)))
        for parameter in trained(model).values():
            parameter.data = parameter.data.float()
        model(collate(functions(), rows(method))).sum().backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in trained(model).values())
        assert logits(model, method).dtype == torch.float32


@pytest.mark.parametrize("method", ["ia3", "adapter_h", "parallel", "lora"])
def test_81_a_name_that_matches_nothing_lists_what_there_is(method):
    with pytest.raises(ModelError, match=r"'q_attn' matches no .*\['attn.c_attn', 'attn.c_proj'"):
        classifier(method, "gpt_bigcode", target_modules=["c_attn", "q_attn"])
    with pytest.raises(ModelError, match="'proj' matches no"):  # no part of a name
        classifier(method, "gpt_bigcode", target_modules=["proj"])


def test_one_name_can_mean_layers_of_two_kinds():
    model = classifier("ia3", "gpt2", target_modules=["c_proj"]).model
    scales = {name: p.shape for name, p in model.named_parameters() if "ia3_l" in name}
    assert {tuple(s) for n, s in scales.items() if ".attn.c_proj" in n} == {(32, 1)}  # output
    assert {tuple(s) for n, s in scales.items() if ".mlp.c_proj" in n} == {(1, 64)}  # input
    assert len(scales) == 4


def test_modules_that_cannot_take_a_bottleneck_are_named():
    section, base = tuning("adapter_p", target_modules=["v_proj"]), base_of("llama")
    base.set_input_embeddings(torch.nn.Embedding(2048, 33))
    with pytest.raises(ModelError, match=r"v_proj' takes no adapter_p: neither its 32"):
        FUNCTIONS["adapter_p"](base, section)


def test_auto_of_an_unknown_architecture_asks_for_names():
    sizes = {"hidden_size": 32, "n_layer": 1, "n_head": 4, "vocab_size": 99}
    config = transformers.AutoConfig.for_model("bloom", **sizes)
    base = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match=r"auto is not known for ia3 on bloom; name the layers"):
        FUNCTIONS["ia3"](base, tuning("ia3"))
    assert FUNCTIONS["lora"](base, tuning("lora")).peft_config["default"].target_modules


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")  # PEFT: the head is no Conv1D
def test_the_head_can_have_an_adapter_that_carries_its_frozen_weight(tmp_path):
    modules = ["c_attn", "score"]
    model = classifier("lora", "gpt2", target_modules=modules)
    names = [name for name in trained(model) if "score" in name]
    assert [name.rpartition("score.")[2] for name in names] == [
        "lora_A.default.weight", "lora_B.default.weight",
    ]  # fmt: skip
    weights = {name: p.detach().float() for name, p in trained(model).items()}
    save_model(model.model, weights, tmp_path / "adapter", {})
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    head = model.model.get_base_model().score.base_layer.weight
    assert torch.equal(saved["base_model.model.score.base_layer.weight"], head)
    other = classifier("lora", "gpt2", target_modules=modules, seed=3)
    other.model.get_base_model().score.base_layer.weight.data.zero_()
    take_adapter(other.model, tmp_path / "adapter")
    assert torch.equal(logits(other, "lora"), logits(model, "lora"))
    stock = base_of("gpt2")
    stock.score.weight.data.zero_()  # drawn anew by who loads a base without a head
    loaded = PeftModel.from_pretrained(stock, tmp_path / "adapter", is_trainable=True).eval()
    assert torch.equal(loaded.get_base_model().score.base_layer.weight, head)
    assert torch.equal(logits(kept_apart(PackedClassifier(loaded)), "lora"), logits(model, "lora"))


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("adapter_h", {"adapter_size": 7}, "has size 6, this recipe 7"),
        ("adapter_h", {"method": "adapter_p"}, "has method adapter_h, this recipe adapter_p"),
        ("lora", {"variant": "dora"}, "has use_dora False, this recipe True"),
        ("lora", {"method": "ia3"}, "has peft_type LORA, this recipe IA3"),
        ("ptuning", {"adapter_size": 6}, "has num_virtual_tokens 5, this recipe 6"),
        ("ia3", {"target_modules": ["c_attn"]}, "has target_modules"),
    ],
)
def test_a_start_of_another_kind_is_refused(method, change, said, tmp_path):
    model = classifier(method, "gpt2")
    weights = {name: p.detach().float() for name, p in trained(model).items()}
    save_model(model.model, weights, tmp_path / "adapter", {})
    with pytest.raises(ModelError, match=said):
        take_adapter(classifier(method, "gpt2", **change).model, tmp_path / "adapter")


def test_a_start_with_a_missing_or_a_foreign_weight_is_refused(tmp_path):
    for method, change in (("parallel", "missing"), ("full", "foreign"), ("ptuning", "encoder")):
        model, folder = classifier(method, "gpt2"), tmp_path / method
        weights = {name: p.detach().float() for name, p in trained(model).items()}
        save_model(model.model, weights, folder, {})
        [path] = folder.glob("*model.safetensors")
        tensors = load_file(path)
        if change == "encoder":
            (folder / "prompt_encoder.safetensors").unlink()
        elif change == "missing":
            tensors.pop(next(name for name in tensors if "adapter_up" in name))
        else:
            tensors["more"] = torch.zeros(1)
        save_file(tensors, path)
        said = "holds no prompt_encoder" if change == "encoder" else "1 weights differ"
        with pytest.raises(ModelError, match=said):
            take_adapter(model.model, folder)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tuning.variant=llm_adapters"], "llm_adapters is one of adapter_h, adapter_p, parallel"),
        (["tuning.method=ia3", "tuning.variant=dora"], "dora is one of lora, qlora, not of"),
        (["tuning.variant=dora", "tuning.quant_type=int8"], "take tuning.quant_type=nf4"),
        (["tuning.method=full", "tuning.quant_type=nf4"], "quantised weights are not trained"),
        (["tuning.method=ia3", "tuning.quant_type=nf4", "engine.preset=cpu_zero3"], "ZeRO 3 would"),
        (["tuning.adapter_size=4"], "adapter_size 4 means nothing to tuning.method lora"),
        (["tuning.method=full", "tuning.target_modules=[c_fc]"], "which adapts no layer"),
        (["tuning.method=full", "tuning.modules_to_save=[wte]"], "which trains everything"),
        (["tuning.method=full", "model.dtype=bf16", "engine.precision=fp32"], "nothing is frozen"),
        (["tuning.target_modules=[score]", "tuning.init_from=x"], "no frozen head"),
    ],
)
def test_settings_that_mean_nothing_are_refused(overrides, said, base):
    with pytest.raises(ConfigError, match=said):
        load_run_config(base, overrides)
