"""Stacked experts: named in the banner, and adapted by PEFT where the recipe names them."""

import json

import bitsandbytes  # noqa: F401  # a run of this process that needs none would hide it
import pytest
import torch
import transformers
from conftest import SAMPLES
from peft import PeftModel
from rank_pool import run_ranks
from stock_peft import assert_stock_scores_are_the_reports
from transformers import AutoModelForSequenceClassification

from launcher.export import main as export_main
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.run_folder.metrics import read_log
from trainer.tuning import METHODS
from trainer.tuning.targets import choose_targets, stacked_line

pytestmark = pytest.mark.usefixtures("stock_pool")
_MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
    "num_experts_per_tok": 2, "vocab_size": 2048, "max_position_embeddings": 1024,
    "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
_QWEN3 = _MIXTRAL | {
    "model_type": "qwen3_moe", "moe_intermediate_size": 24, "num_experts": 4, "head_dim": 8,
}  # fmt: skip
_EXPERTS = ["experts.down_proj", "experts.gate_up_proj"]
_NAMES = ["q_proj", *_EXPERTS]


def base_of(values, auto=transformers.AutoModelForCausalLM):
    values = dict(values)
    torch.manual_seed(0)
    return auto.from_config(transformers.AutoConfig.for_model(values.pop("model_type"), **values))


def section(**more):
    return TuningSection(**{"lora_r": 4, "lora_dropout": 0.0, "target_modules": _NAMES} | more)


def drawn(model):
    """Every adapter changes what the model says."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45).view(2, 20)).logits


@pytest.mark.parametrize("values", [_MIXTRAL, _QWEN3], ids=["mixtral", "qwen3_moe"])
def test_stock_peft_and_the_merged_model_give_the_same_logits(values, tmp_path):
    before = logits(base_of(values).eval())
    model = drawn(METHODS["lora"](base_of(values), section()))
    ours = logits(model)
    assert (ours - before).abs().max() > 0.1
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base_of(values), str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), ours, rtol=0, atol=5e-5)


def test_the_adapter_of_an_expert_is_b_times_a():
    """By hand: expert e of (experts, out, in) gets alpha / r x B_e A_e, B's ranks outermost."""
    base = base_of(_QWEN3)
    before = base.model.layers[0].mlp.experts.down_proj.detach().clone()
    model = drawn(METHODS["lora"](base, section(target_modules=["experts.down_proj"])))
    wrapper = model.get_base_model().model.layers[0].mlp.experts
    a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
    model.merge_adapter()
    added = wrapper.get_base_layer().down_proj - before
    for expert in range(4):
        own_b = b.view(32, 4, 4)[:, :, expert]
        expected = 16 / 4 * own_b @ a[4 * expert : 4 * expert + 4]
        torch.testing.assert_close(added[expert], expected, rtol=0, atol=1e-5)


def test_the_line_gives_the_share_by_hand():
    base = base_of(_MIXTRAL)
    total = sum(p.numel() for p in base.parameters())
    share = 2 * 4 * 3 * 32 * 48 / total  # blocks x experts x three matrices
    names = "mlp.experts.down_proj, mlp.experts.gate_up_proj"
    line = f"{names}: one parameter for all experts of a block, {share:.1%} of the model"
    model = METHODS["lora"](base, section(target_modules="auto")).get_base_model()
    only = "; not adapted: mlp.experts.down_proj, mlp.experts.gate_up_proj; only the modules above"
    assert stacked_line(model, total, section(target_modules="auto")) == f"{line}{only} are"
    quantised = section(target_modules="auto", method="qlora")
    assert stacked_line(model, total, quantised).endswith("; experts are not quantised")
    model = METHODS["lora"](base_of(_MIXTRAL), section()).get_base_model()
    assert stacked_line(model, total, section()) == f"{line}; adapted: {names}"
    assert stacked_line(model, total, section(method="full")) is None
    assert stacked_line(base_of(_QWEN3 | {"model_type": "llama"}), total, section()) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lora_dropout": 0.1}, r"adapter knows no dropout; set tuning\.lora_dropout=0"),
        ({"variant": "dora"}, r"which dora does not support; take tuning\.variant=plain"),
        ({"lora_r": 25}, r"'experts.down_proj' .* 24 wide, below tuning\.lora_r 25"),
        ({"target_modules": ["experts.up"]}, "'experts.up' matches no linear layer"),
    ],
)
def test_what_the_adapter_of_experts_cannot_do_is_refused(more, said):
    with pytest.raises(ModelError, match=said):
        choose_targets(base_of(_QWEN3), section(**{"target_modules": _EXPERTS[:1]} | more))


def test_a_name_of_other_parameters_too_is_refused():
    base = base_of(_MIXTRAL)
    base.model.layers[0].mlp.down_proj = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ModelError, match=r"also matches model\.layers\.0\.mlp\.down_proj"):
        choose_targets(base, section(target_modules=["down_proj"]))


@pytest.fixture(scope="module")
def runs(tiny_recipe, tmp_path_factory):
    """Folders of runs that adapt the experts, alone and cut up by ZeRO 3 with recomputation."""
    root = tmp_path_factory.mktemp("experts")
    # Rows of whole blocks: stock bitsandbytes decodes others wrongly on CPUs with AVX512.
    (root / "config.json").write_text(json.dumps(_MIXTRAL | {"hidden_size": 64}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / name).write_bytes((SAMPLES / "model" / name).read_bytes())
    ways = {
        "lora": (1, ["engine.preset=cpu_zero1"]),
        "zero3": (2, ["engine.preset=cpu_zero3", "model.gradient_checkpointing=true"]),
        "qlora": (1, ["engine.preset=cpu_zero1", "tuning.method=qlora"]),
    }
    for way, (world_size, more) in ways.items():
        command = [
            str(tiny_recipe), f"run.output_dir={root / way}", f"model.config={root}",
            f"tuning.target_modules=[{','.join(_NAMES)}]", "optim.max_steps=4", *more,
        ]  # fmt: skip
        printed = root / f"{way}.txt"
        assert run_ranks(command, world_size, printed) == [0] * world_size, printed.read_text()
    return root


@pytest.mark.slow
def test_zero_3_gives_the_losses_of_one_process(runs):
    first, second = ([row["loss"] for row in read_log(runs / way / "log.jsonl")]
                     for way in ("lora", "zero3"))  # fmt: skip
    assert first == pytest.approx(second, rel=1e-5)
    assert len(set(first)) == 4
    assert "; adapted: mlp.experts.down_proj, mlp.exp" in (runs / "lora.txt").read_text()
    assert "experts are not quantised" in (runs / "qlora.txt").read_text()


LOAD = """
more = {}
if facts["quantization"]:
    more["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["score"],
    )
base = AutoModelForSequenceClassification.from_pretrained(
    base_name, num_labels=2, dtype=torch.float32, **more
)
model = PeftModel.from_pretrained(base, adapter).eval()
for module in model.modules():  # CPUs with AVX512-BF16 repack, which this size does not fit
    module.support_avx512bf16_for_cpu = False
"""


@pytest.mark.slow
def test_stock_peft_gives_the_scores_of_the_report(runs, tiny_data, tmp_path):
    rows = map(json.loads, (tiny_data / "test.jsonl").read_text().splitlines())
    folders = [runs / way for way in ("lora", "zero3", "qlora")]
    assert_stock_scores_are_the_reports(
        LOAD, folders, runs / "tokenizer.json", [row["code"] for row in rows], tmp_path
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["lora", "qlora"])
def test_merged_experts_move_nothing(way, runs, tmp_path):
    output = tmp_path / "merged"
    assert export_main([str(runs / way), str(output), "--merge"]) == 0
    drift = json.loads((output / "focaltune.json").read_text())["merge"]
    assert drift["max_logit_difference"] < 1e-4 * max(1.0, drift["largest_logit"])
    merged = AutoModelForSequenceClassification.from_pretrained(output)
    base = AutoModelForSequenceClassification.from_pretrained(runs / way / "base")
    moved = (
        merged.model.layers[0].mlp.experts.down_proj - base.model.layers[0].mlp.experts.down_proj
    )
    assert (moved.abs().amax((1, 2)) > 0).all()
