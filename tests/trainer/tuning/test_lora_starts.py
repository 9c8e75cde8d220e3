"""LoRA that begins with a part of the base, as PiSSA and OLoRA, against PEFT, which changes it."""

import json

import pytest
import torch
from cut_runs import cut_back
from peft import LoraConfig, get_peft_model
from rank_pool import run_ranks
from safetensors.torch import load_file
from stock_peft import assert_stock_scores_are_the_reports
from transformers import GPT2Config, GPT2ForSequenceClassification

from launcher.export import main as export_main
from trainer.config.methods import as_plain
from trainer.config.peft_methods import peft_faults
from trainer.config.recipe import load_run_config
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.planning.memory import memory_of
from trainer.planning.plan import checkpoint_bytes
from trainer.run.build import build_model, resolve_here
from trainer.run_folder.metrics import read_log
from trainer.tuning.peft_layers import add_lora

pytestmark = pytest.mark.usefixtures("stock_pool")
LAYER = "transformer.h.0.mlp.c_fc"
ROUNDING = 5e-6  # sums in another order
LOAD = """
base = AutoModelForSequenceClassification.from_pretrained(base_name, num_labels=2)
model = PeftModel.from_pretrained(base, adapter).eval()
"""


def words(start, *more):
    return [f"tuning.peft={{init_lora_weights: {start}}}", *more]


def built(recipe, *overrides):
    """The model of transformers and PEFT that a recipe trains."""
    config = load_run_config(recipe, list(overrides))
    return build_model(resolve_here(config, torch.device("cpu")).config).model


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_outputs_and_gradients_are_those_of_peft_which_changes_the_base(start, tiny_recipe):
    ours = built(tiny_recipe, *words(start))
    base = built(tiny_recipe, "tuning.method=full").get_base_model()
    before = base.get_submodule(LAYER).weight.detach().clone()
    settings = LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=16, init_lora_weights=start,
        target_modules=ours.peft_config["default"].target_modules,
    )  # fmt: skip
    theirs = get_peft_model(base, settings)
    changed, kept = (one.get_submodule(f"base_model.model.{LAYER}") for one in (theirs, ours))
    assert torch.equal(kept.base_layer.weight, before)
    assert (changed.base_layer.weight - before).abs().max() > 0.1
    trained = [name for name, one in theirs.named_parameters() if one.requires_grad]
    found = []
    for model in (ours.eval(), theirs.eval()):
        draw = torch.Generator().manual_seed(1)
        for name in trained:
            weight = model.get_parameter(name)
            weight.data.add_(torch.randn(weight.shape, generator=draw) * 0.1)
        logits = model(input_ids=torch.arange(40)[None]).logits
        logits.square().sum().backward()
        gradients = [model.get_parameter(name).grad for name in trained]
        found.append([logits.detach(), *gradients])
    assert len(trained) == 2 * 8 + 1  # layers, and the head
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm() > 0


@pytest.mark.parametrize(("start", "rest"), [("pissa", 1e-3), ("pissa_niter_16", 0.05)])
def test_what_pissa_trains_are_the_largest_singular_values(start, rest, tiny_recipe):
    layer = built(tiny_recipe, *words(start)).get_submodule(f"base_model.model.{LAYER}")
    weight = layer.base_layer.weight.detach()
    values = torch.linalg.svdvals(weight)
    left = torch.linalg.svdvals(weight - layer.scaling["default"] * layer.start_B @ layer.start_A)
    torch.testing.assert_close(left[: len(values) - 4], values[4:], rtol=0, atol=rest * values[4])


def test_pissa_knows_transposed_layers_and_olora_which_peft_gets_wrong_is_refused():
    def with_lora(start):
        config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=64)
        torch.manual_seed(0)
        base = GPT2ForSequenceClassification(config).eval()
        tuning = {"lora_r": 4, "target_modules": ["c_fc"], "peft": {"init_lora_weights": start}}
        before = base(torch.arange(9)[None]).logits
        return before, add_lora(base, TuningSection.model_validate(tuning)).eval()

    before, model = with_lora("pissa")
    torch.testing.assert_close(model(torch.arange(9)[None]).logits, before, rtol=1e-4, atol=1e-5)
    layer = model.get_submodule(f"base_model.model.{LAYER}")
    assert layer.base_layer.weight.shape == (32, 128)
    left = layer.base_layer.weight.T - layer.scaling["default"] * layer.start_B @ layer.start_A
    values = torch.linalg.svdvals(layer.base_layer.weight)
    torch.testing.assert_close(torch.linalg.svdvals(left)[0], values[4], rtol=1e-3, atol=0)
    with pytest.raises(ModelError, match="does not know transposed layers"):
        with_lora("olora")


@pytest.fixture(scope="module", params=["pissa", "olora"])
def whole(request, tiny_recipe, tmp_path_factory):
    """A run of two ranks under ZeRO 2."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    command = [str(tiny_recipe), *words(request.param), "optim.schedule=constant"]
    command += ["tuning.lora_dropout=0.1"]
    losses(folder, command, 2, 6, "cpu_zero2")
    return folder, command


def losses(folder, command, world_size, steps, preset):
    printed = folder.with_suffix(".txt")
    more = [f"run.output_dir={folder}", f"engine.preset={preset}", f"optim.max_steps={steps}"]
    codes = run_ranks([*command, *more, "run.accept_changes=true"], world_size, printed)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def test_stock_peft_on_the_untouched_base_gives_the_scores_of_the_report(
    whole, tiny_data, tiny_model, tmp_path
):
    folder, _ = whole
    settings = json.loads((folder / "model" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["init_lora_weights"]) == (8, 32, True)
    rows = map(json.loads, (tiny_data / "test.jsonl").read_text().splitlines())
    assert_stock_scores_are_the_reports(
        LOAD, [folder], tiny_model / "tokenizer.json", [row["code"] for row in rows], tmp_path
    )
    assert export_main([str(folder), str(tmp_path / "merged"), "--merge"]) == 0  # by the recipe


@pytest.mark.parametrize("whole", ["pissa"], indirect=True)
def test_a_run_in_two_parts_is_that_in_one_and_the_state_moves_to_other_ranks(whole, tmp_path):
    folder, command = whole
    expected = [row["loss"] for row in read_log(folder / "log.jsonl")]
    cut_back(folder, tmp_path / "parts", 4)
    assert losses(tmp_path / "parts", command, 2, 6, "cpu_zero2") == expected  # bitwise
    command = [*command, "tuning.lora_dropout=0"]
    alone = losses(tmp_path / "alone", command, 1, 6, "cpu_zero0")
    assert losses(tmp_path / "three", command, 2, 6, "cpu_zero3") == pytest.approx(
        alone, rel=ROUNDING
    )
    assert len(set(alone)) == 6


def test_a_checkpoint_holds_the_start_so_that_another_decomposition_changes_nothing(whole):
    folder, _ = whole
    state = load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "state.safetensors")
    starts = {name: one for name, one in state.items() if name.endswith((".start_A", ".start_B"))}
    saved = load_file(folder / "model" / "adapter_model.safetensors")
    assert len(starts) == sum(".lora_" in name for name in saved) > 0
    for name, start in starts.items():
        layer, _, side = name.removeprefix("model.").rpartition(".start_")
        value = saved[f"{layer}.lora_{side}.weight"]
        assert torch.equal(value[4:] if side == "A" else -value[:, 4:], start)


def test_the_planner_counts_what_adapters_began_with(tiny_recipe):
    plain, begun = (
        resolve_here(load_run_config(tiny_recipe, given), torch.device("cpu"))
        for given in ([], words("pissa"))
    )
    layers = [(32, 48), (32, 32), (32, 64), (64, 32)]  # multi-query: 32 + 2 x 8 outputs
    started = 2 * 4 * sum(map(sum, layers))
    buffers = dict(build_model(begun.config).named_buffers())
    assert sum(one.numel() for n, one in buffers.items() if ".start_" in n) == started
    frozen = [memory_of(one).frozen_weights for one in (plain, begun)]
    assert frozen[1] - frozen[0] == 4 * started
    assert checkpoint_bytes(begun) - checkpoint_bytes(plain) == 4 * started


def test_the_scale_of_what_is_saved_is_that_of_what_was_trained():
    for variant, scale in (("plain", lambda r, a: a / r), ("rslora", lambda r, a: a / r**0.5)):
        patterns = {"rank_pattern": {"x": 3}, "alpha_pattern": {"x": 5}}
        tuning = TuningSection(
            lora_r=4, variant=variant, peft={"init_lora_weights": "pissa", **patterns}
        )
        plain = as_plain(tuning)
        assert scale(plain.lora_r, plain.lora_alpha) == pytest.approx(scale(4, 16))
        found = [plain.peft[key]["x"] for key in ("rank_pattern", "alpha_pattern")]
        assert scale(*found) == pytest.approx(scale(3, 5))
        assert found[0] == 6
        assert "init_lora_weights" not in plain.peft


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "qlora"}, "the base is quantised; take tuning.method=lora"),
        ({"variant": "dora"}, "dora with all of it; choose one"),
        ({"init_from": "x"}, "which has weights to begin with; remove one"),
        ({"peft": {"init_lora_weights": "eva"}}, "'eva': it needs the inputs of every layer"),
        ({"peft": {"init_lora_weights": "pissa_niter_x"}}, "not known; allowed: true, false"),
    ],
)
def test_starts_that_cannot_be_are_refused(given, said):
    tuning = TuningSection.model_validate({"peft": {"init_lora_weights": "pissa"}} | given)
    assert any(said in fault for fault in peft_faults(tuning))


def test_a_layer_narrower_than_twice_the_rank_is_refused(tiny_recipe):
    with pytest.raises(ModelError, match=r"32 wide, below .* 40"):
        built(tiny_recipe, *words("pissa", "tuning.lora_r=20", "tuning.target_modules=[c_attn]"))
