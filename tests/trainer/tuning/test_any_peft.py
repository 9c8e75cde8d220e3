"""Every method of PEFT by its name: proved on packed rows, trained, kept, loaded by stock PEFT.

Each method meets one of four cells (family x task), in turn; `make methods` runs whole programs.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_sets import example_set, language_set
from method_cases import model_config
from method_cells import PEFT_ARGUMENTS
from peft import PeftModel
from strategies import proof_settings
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data.batches.batch import collate
from trainer.config.peft_methods import peft_faults, peft_names
from trainer.config.recipe import load_run_config
from trainer.config.sections import OWN_METHODS, LossSection, TuningSection
from trainer.errors import ConfigError, ModelError
from trainer.models.heads import PackedClassifier, PackedLanguageModel
from trainer.models.proof import choose_strategy
from trainer.models.quantized_methods import prove_quantised
from trainer.planning.added import counted
from trainer.planning.plan import read_shape
from trainer.run_folder.model import save_model
from trainer.tuning import METHODS, add_peft
from trainer.tuning.any_peft import stirred
from trainer.tuning.continued import take_adapter

LENGTHS = (37, 5, 90, 64, 30)
ROWS = [np.array([0, 1, 2]), np.array([3, 4])]
CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "instruction": AutoModelForCausalLM,
}
NAMES = [name for name in peft_names() if name not in OWN_METHODS]
CELLS = list(
    zip(
        NAMES,
        itertools.cycle(itertools.product(("llama", "gpt_bigcode"), CLASSES)),
        strict=False,
    )
)
NO_HEAD = ("adaption_prompt", "trainable_tokens")  # their settings know no modules_to_save
ALONE = ("lily", "prompt_tuning", "prefix_tuning", "cartridge")  # they mix or come before a record


def section(name, **more):
    given = {"lora_dropout": 0.0, "lora_r": 4, "peft": PEFT_ARGUMENTS.get(name, {})}
    return TuningSection(method=name, **given | more)


def base_of(family, task):
    torch.manual_seed(0)
    base = CLASSES[task].from_config(model_config(family))
    base.config.pad_token_id = None
    return base


def packed(name, family, task, seed=1, **more):
    base, given = base_of(family, task), section(name, **more)
    torch.manual_seed(seed)
    tuned = METHODS.get(name, add_peft)(base, given)
    if task == "classification":
        return PackedClassifier(tuned).eval()
    return PackedLanguageModel(tuned, LossSection(backend="reference")).eval()


def records(task):
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, 2048, length).tolist() for length in LENGTHS]
    ids[0][:3] = [3, 40, 50]  # which trainable_tokens trains
    if task == "classification":
        return example_set(ids)
    return language_set(ids, [[True] * len(one) for one in ids])


def prove(model, task):
    settings = replace(proof_settings("segment_sdpa"), is_free=True)
    return choose_strategy(model, model, records(task), settings, torch.device("cpu"))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def scores(model, task):
    """Logits of each function, or the nll of each target."""
    with torch.no_grad():
        found = model(collate(records(task), ROWS))
    return found if task == "classification" else found[:, 0]


def stock_scores(model, task):
    """The same by stock code, one record at a time."""
    examples, found = records(task), []
    for index, length in enumerate(LENGTHS):
        ids = torch.from_numpy(examples.tokens[examples.starts[index] :][:length].astype(np.int64))
        with torch.no_grad():
            given = {"input_ids": ids[None], "attention_mask": torch.ones(1, length)}
            logits = model(**given).logits[0]
        if task == "instruction":
            chances = logits[-length:-1].log_softmax(-1)
            logits = -chances.gather(1, ids[1:, None])[:, 0]
        found.append(logits)
    return torch.cat(found) if task == "instruction" else torch.stack(found)


def step(model, task):
    model.train()
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.02)
    for _ in range(2):
        found = model(collate(records(task), ROWS))
        loss = found.square().sum() if task == "classification" else found[0] / found[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, of what it has not tried itself
@pytest.mark.parametrize(("name", "cell"), CELLS, ids=NAMES)
def test_a_method_is_proved_trained_kept_and_loaded_by_stock(name, cell, tmp_path):
    family, task = cell
    if name in NO_HEAD or name == "cartridge" or name == "prefix_tuning":
        family, task = "llama", "instruction"
    if name == "lily":  # its router reads the mean of a text: only whole records are scored
        task = "classification"
    model = packed(name, family, task)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    assert ("rows" in prove(model, task)[-1]) == (name in ALONE)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    with stirred(model):
        after_noise = scores(model, task)
    step(model, task)
    assert (after_noise - scores(model, task)).abs().max() > 1e-4
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved <= set(trained(model))
    assert len(moved) >= len(trained(model)) // 2  # some start where a gradient is 0
    weights = {key: p.detach().float() for key, p in trained(model).items()}
    save_model(model.model, weights, tmp_path / "model", {})
    fresh = packed(name, family, task, seed=2)
    take_adapter(fresh.model, tmp_path / "model")
    fresh.strategy = model.strategy
    fresh.model.get_base_model().set_attn_implementation(model.strategy.attention)
    assert torch.equal(scores(fresh, task), scores(model, task))
    stock = PeftModel.from_pretrained(base_of(family, task), tmp_path / "model").eval()
    # fp32 sums in another order, through two layers.
    torch.testing.assert_close(scores(model, task), stock_scores(stock, task), rtol=0, atol=5e-5)


def test_enough_methods_have_a_door():
    """45 are in PEFT 0.21; ours replace LoRA, IA3 and P-Tuning; the others are left out by name."""
    assert len(NAMES) == 36
    assert len({*NAMES, "lora", "ia3", "p_tuning"}) == 39


def test_lily_is_refused_for_texts_whose_tokens_it_lets_see_later_ones():
    with pytest.raises(
        ModelError, match=r"see later tokens.*a tuning\.method of every token alone"
    ):
        prove(packed("lily", "llama", "instruction"), "instruction")


@pytest.mark.parametrize(
    ("method", "peft", "said"),
    [
        ("oft", {"oft_blok_size": 4}, "no such argument; did you mean 'oft_block_size'?"),
        ("vera", {"r": "many"}, "tuning.peft.r: Input should be a valid integer"),
        ("vera", {"target_modules": ["q"]}, "set tuning.target_modules instead"),
        ("lora", {"r": 4}, "set tuning.lora_r instead"),
        ("lora", {"init_lora_weights": "pissa"}, "'pissa' changes the base"),
        ("lora", {"megatron_core": "os"}, "it imports a module by name; remove it"),
        ("lora", {"eva_config": {}}, "it is a config of its own; remove it"),
        ("prompt_tuning", {"tokenizer_kwargs": {"trust_remote_code": True}}, "by name; remove it"),
        ("ia3", {"init_ia3_weights": True}, "is not read by tuning.method ia3"),
        ("vora", {}, "tuning.method 'vora' is not known; did you mean"),
        ("p_tuning", {}, "is not known; did you mean 'ptuning'?"),
        ("adalora", {}, "is left out: its ranks follow a schedule"),
    ],
)
def test_what_peft_would_take_otherwise_is_refused_before_anything_loads(method, peft, said, base):
    assert any(said in fault for fault in peft_faults(TuningSection(method=method, peft=peft)))
    words = [f"tuning.method={method}", f"tuning.peft={peft}", "data.packing=false"]
    with pytest.raises(ConfigError):
        load_run_config(base, words)


def test_an_argument_is_given_by_its_own_key(base):
    config = load_run_config(base, ["tuning.method=oft", "tuning.peft.oft_block_size=16"])
    assert config.tuning.peft == {"oft_block_size": 16}


def test_lora_takes_what_no_other_key_says():
    model = packed("lora", "llama", "instruction", peft={"rank_pattern": {"q_proj": 2}})
    ranks = {name.split(".")[-4]: len(p) for name, p in trained(model).items() if "lora_A" in name}
    assert ranks["q_proj"] == 2
    assert {rank for name, rank in ranks.items() if name != "q_proj"} == {4}


@pytest.mark.parametrize("name", ["vera", "oft", "hra", "road"])
def test_the_planner_counts_a_method_on_the_skeleton(name, base, tmp_path):
    words = [f"tuning.method={name}", "tuning.lora_r=4"]
    given = PEFT_ARGUMENTS.get(name, {}).items()
    config = load_run_config(base, [*words, *(f"tuning.peft.{k}={v}" for k, v in given)])
    num, shape = counted(config, read_shape(config))
    assert not shape.doubt
    torch.manual_seed(0)
    from trainer.run.build import build_model, resolve_here

    model = build_model(resolve_here(config, torch.device("cpu")).config)
    heads = [p.numel() for n, p in trained(model).items() if "score" in n]
    assert num == sum(p.numel() for p in trained(model).values()) - sum(heads)


@pytest.mark.parametrize(
    ("method", "quant_type", "said"),
    [
        ("vera", "nf4", ""),
        ("oft", "int8", ""),
        ("hra", "int8", "computes something else than on the decoded weights"),
        ("deft", "nf4", "PEFT has no such layer"),
        ("ln_tuning", "nf4", ""),  # norms are not quantised
    ],
)
def test_a_quantised_base_is_proved_on_one_layer_before_it_loads(method, quant_type, said):
    given = section(method, quant_type=quant_type)
    if not said:
        prove_quantised(given)
        return
    with pytest.raises(ConfigError, match=f"{said}.*take a base that is not quantised"):
        prove_quantised(given)
