"""How LoRA begins: against PEFT, which changes the base, and against the papers' own formulas."""

import itertools
import json

import numpy as np
import pytest
import torch
from cut_runs import cut_back
from example_sets import example_set
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from rank_pool import run_ranks
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from stock_peft import assert_stock_scores_are_the_reports
from transformers import GPT2Config, GPT2ForSequenceClassification

from launcher.export import main as export_main
from trainer.config.methods import as_plain
from trainer.config.peft_methods import peft_faults
from trainer.config.recipe import load_run_config
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.models.load import VULNERABILITY
from trainer.models.quantized import decoded_weight
from trainer.planning.memory import memory_of
from trainer.planning.plan import checkpoint_bytes
from trainer.run.build import build_model, draw_start_of, resolve_here, write_random_base
from trainer.run_folder.metrics import read_log
from trainer.tuning.peft_layers import add_lora
from trainer.tuning.starts import Passes, draw_start, started, take_start

pytestmark = pytest.mark.usefixtures("stock_pool")
LAYER = "transformer.h.0.mlp.c_fc"
WRAPPED = f"base_model.model.{LAYER}"
DRAW = np.random.default_rng(0)
RECORDS = example_set(
    [DRAW.integers(3, 500, length).tolist() for length in DRAW.integers(20, 90, 24)]
)
ROUNDING = 5e-6  # sums in another order
LOAD = """
base = AutoModelForSequenceClassification.from_pretrained(base_name, num_labels=2)
model = PeftModel.from_pretrained(base, adapter).eval()
"""


def words(start, *more):
    return [f"tuning.peft={{init_lora_weights: {start}}}", *more]


def built(recipe, folder, *overrides):
    """The model of transformers and PEFT that a recipe trains."""
    config = load_run_config(recipe, [f"run.output_dir={folder}", *overrides])
    config, device = resolve_here(config, torch.device("cpu")).config, torch.device("cpu")
    folder.mkdir(exist_ok=True)
    if config.tuning.base_quant_type is not None:
        write_random_base(config)
    draw_start_of(config, VULNERABILITY, RECORDS, device)
    return build_model(config).model.eval()


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_outputs_and_gradients_are_those_of_peft_which_changes_the_base(
    start, tiny_recipe, tmp_path
):
    ours = built(tiny_recipe, tmp_path, *words(start))
    base = built(tiny_recipe, tmp_path / "full", "tuning.method=full").get_base_model()
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
def test_what_pissa_trains_are_the_largest_singular_values(start, rest, tiny_recipe, tmp_path):
    layer = built(tiny_recipe, tmp_path, *words(start)).get_submodule(WRAPPED)
    weight = layer.base_layer.weight.detach()
    values = torch.linalg.svdvals(weight)
    left = torch.linalg.svdvals(weight - layer.scaling["default"] * layer.start_B @ layer.start_A)
    torch.testing.assert_close(left[: len(values) - 4], values[4:], rtol=0, atol=rest * values[4])


def test_pissa_knows_transposed_layers_and_olora_which_peft_gets_wrong_is_refused():
    def with_lora(start):
        config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=64)
        torch.manual_seed(0)
        base, used_up = (GPT2ForSequenceClassification(config).eval() for _ in range(2))
        used_up.load_state_dict(base.state_dict())
        settings = {"lora_r": 4, "target_modules": ["c_fc"], "peft": {"init_lora_weights": start}}
        tuning = TuningSection.model_validate(settings)
        drawn = draw_start(used_up, tuning, Passes(print, print, lambda path: None))
        before = base(torch.arange(9)[None]).logits
        model = add_lora(base, tuning).eval()
        take_start(model, drawn, is_part=True)
        return before, model

    before, model = with_lora("pissa")
    torch.testing.assert_close(model(torch.arange(9)[None]).logits, before, rtol=1e-4, atol=1e-5)
    layer = model.get_submodule(WRAPPED)
    assert layer.base_layer.weight.shape == (32, 128)
    left = layer.base_layer.weight.T - layer.scaling["default"] * layer.start_B @ layer.start_A
    values = torch.linalg.svdvals(layer.base_layer.weight)
    torch.testing.assert_close(torch.linalg.svdvals(left)[0], values[4], rtol=1e-3, atol=0)
    with pytest.raises(ModelError, match="does not know transposed layers"):
        with_lora("olora")


@pytest.fixture(scope="module")
def stock(tiny_recipe, tmp_path_factory):
    """The base in float64, and what LAYER reads of each record."""
    base = built(tiny_recipe, tmp_path_factory.mktemp("full"), "tuning.method=full")
    base = base.get_base_model().double()
    read = []
    handle = base.get_submodule(LAYER).register_forward_pre_hook(
        lambda module, given: read.append(given[0].detach()[0].numpy())
    )
    with torch.no_grad():
        for ids in records():
            base(input_ids=ids)
    handle.remove()
    return base, read


def records():
    starts = RECORDS.starts
    return [
        torch.from_numpy(RECORDS.tokens[a:b]).long()[None] for a, b in itertools.pairwise(starts)
    ]


def part_of(layer):
    """s B0 A0, in float64."""
    return layer.scaling["default"] * (layer.start_B.double() @ layer.start_A.double()).numpy()


def test_eva_begins_with_the_principal_components_of_what_layers_read(stock, tiny_recipe, tmp_path):
    _, read = stock
    model = built(tiny_recipe, tmp_path, *words("eva, eva_config: {rho: 2}"))
    layers = {
        path.removeprefix("base_model.model."): layer
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    right = PCA().fit(np.concatenate(read))
    a = layers[LAYER].lora_A["default"].weight.detach().double().numpy()
    near = np.abs((a * right.components_[: len(a)]).sum(1))
    assert near.min() > 0.999
    assert not any(layer.lora_B["default"].weight.any() for layer in layers.values())
    ranks = {path: layer.r["default"] for path, layer in layers.items()}
    assert sum(ranks.values()) == 4 * 8
    assert min(ranks.values()) < max(ranks.values()) <= 8
    # Every component that is left out explains less than every one that is taken.
    shares = right.explained_variance_ratio_
    rank = ranks[LAYER]
    taken = min(share_of(model, path, one - 1) for path, one in ranks.items())
    assert rank == min(8, sum(shares >= taken * (1 - 1e-3)))
    assert {layer.scaling["default"] for layer in layers.values()} == {16 / 4}


def test_a_layer_of_rank_0_is_not_adapted():
    tuning = TuningSection.model_validate(
        {"lora_r": 4, "peft": {"init_lora_weights": "eva", "exclude_modules": ["x"]}}
    )
    start = {"a.A": torch.ones(8, 3), "a.B": torch.ones(5, 8), "b.A": torch.ones(0, 3)}
    assert started(tuning, start).peft == {
        "rank_pattern": {"a": 8}, "alpha_pattern": {"a": 32.0}, "exclude_modules": ["x", "b"]
    }  # fmt: skip


def share_of(model, path, number):
    """Share of variance that component `number` of what a layer reads explains, by a plain SVD."""
    read = []
    layer = model.get_submodule(f"base_model.model.{path}")
    handle = layer.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()[0]))
    with torch.no_grad():
        for ids in records():
            model(input_ids=ids)
    handle.remove()
    states = torch.cat(read).double()
    values = torch.linalg.svdvals(states - states.mean(0)) ** 2
    return float(values[number] / values.sum())


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_takes_the_part_that_its_paper_names(method, stock, tiny_recipe, tmp_path):
    base, read = stock
    wanted = f"corda, corda_config: {{corda_method: {method}}}"
    layer = built(tiny_recipe, tmp_path, *words(wanted)).get_submodule(WRAPPED)
    weight = base.get_submodule(LAYER).weight.detach().numpy()
    scaled = [one / abs(one.max()) for one in read]  # PEFT's
    covariance = sum(one.T @ one for one in scaled) / len(scaled)
    covariance += 0.01 * np.eye(len(covariance)) * np.diag(covariance).mean()
    left, values, right = np.linalg.svd(weight @ covariance, full_matrices=False)
    chosen = slice(0, 4) if method == "ipm" else slice(-4, None)
    expected = left[:, chosen] * values[chosen] @ right[chosen] @ np.linalg.inv(covariance)
    assert np.linalg.norm(part_of(layer) - expected) < 1e-3 * np.linalg.norm(expected)


def test_lora_ga_begins_along_the_gradient_of_the_tasks_loss(stock, tiny_recipe, tmp_path):
    base, _ = stock
    layer = built(tiny_recipe, tmp_path, *words("lora_ga")).get_submodule(WRAPPED)
    base.zero_grad()
    for ids, label in zip(records(), RECORDS.label_E, strict=True):
        p = base(input_ids=ids).logits[0].softmax(-1)[int(label)]
        loss = -[0.4, 0.6][label] * (1 - p) ** 2 * p.log()  # loss.gamma and alpha of the recipe
        loss.backward()
    gradient = base.get_submodule(LAYER).weight.grad.numpy() / len(RECORDS)
    left, values, right = np.linalg.svd(gradient, full_matrices=False)
    a, b = (one.double().numpy() for one in (layer.start_A, layer.start_B))
    np.testing.assert_allclose(a @ right[:4].T @ right[:4], a, atol=1e-3)  # spans the same space
    scale = gradient.shape[0] ** 0.25 / 16**0.5  # "stable"
    expected = np.linalg.norm(left[:, 4:8] * values[4:8] * scale)
    np.testing.assert_allclose(np.linalg.norm(b), expected, rtol=1e-3)


@pytest.mark.parametrize("quant_type", ["nf4", "int8"])
def test_loftq_begins_with_the_best_part_of_what_quantising_lost(quant_type, tiny_recipe, tmp_path):
    more = ["tuning.method=qlora", f"tuning.quant_type={quant_type}", "data.packing=false"]
    model = built(tiny_recipe, tmp_path / "q", *words("loftq", *more))
    layer = model.get_submodule(WRAPPED)
    whole = built(tiny_recipe, tmp_path / "full", "tuning.method=full").get_base_model()
    weight = whole.get_submodule(LAYER).weight.detach()
    lost = weight - decoded_weight(layer.base_layer)
    a, b = (getattr(layer, f"lora_{side}")["default"].weight.detach() for side in "AB")
    rest = torch.linalg.svdvals(lost - layer.scaling["default"] * b @ a)
    assert rest[0] < torch.linalg.svdvals(lost)[4] * 1.001
    np.testing.assert_allclose(rest[:20], torch.linalg.svdvals(lost)[4:24], rtol=2e-2)


@pytest.mark.parametrize("start", ["pissa", "olora", "corda", "lora_ga", "eva"])
@pytest.mark.parametrize("base", ["plain", "nf4"])
def test_the_model_begins_as_the_base(start, base, tiny_recipe, tmp_path):
    more = [] if base == "plain" else ["tuning.method=qlora", "tuning.quant_type=nf4"]
    ids = torch.arange(40)[None]
    model = built(tiny_recipe, tmp_path, *words(start, *more))
    with torch.no_grad():
        found = model(input_ids=ids).logits
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                assert layer.lora_A["default"].weight.abs().max() > 0
        with model.disable_adapter():
            right = model(input_ids=ids).logits
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_a_start_is_drawn_once_and_again_only_for_another_recipe_or_data(
    tiny_recipe, tmp_path, monkeypatch
):
    def drawn(*more):
        built(tiny_recipe, tmp_path, *words("corda", *more))
        return (tmp_path / "start" / "start.safetensors").stat().st_mtime_ns

    first = drawn()
    assert drawn() == first
    assert (fourth := drawn("run.seed=4")) != first
    monkeypatch.setitem(globals(), "RECORDS", RECORDS.subset(np.arange(20)))
    assert drawn("run.seed=4") != fourth
    written = tmp_path / "start" / "start.safetensors"
    written.write_bytes(written.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"start is damaged: .* draws it again"):
        drawn("run.seed=4")


@pytest.fixture(scope="module")
def wholes(tiny_recipe, tmp_path_factory):
    """Runs of two ranks under ZeRO 2, by their start."""
    runs = {}
    for start in ("pissa", "eva"):
        folder = tmp_path_factory.mktemp(start) / "run"
        command = [str(tiny_recipe), *words(start), "optim.schedule=constant"]
        command += ["tuning.lora_dropout=0.1"]
        losses(folder, command, 2, 6, "cpu_zero2")
        runs[start] = folder, command
    return runs


def losses(folder, command, world_size, steps, preset):
    printed = folder.with_suffix(".txt")
    more = [f"run.output_dir={folder}", f"engine.preset={preset}", f"optim.max_steps={steps}"]
    codes = run_ranks([*command, *more, "run.accept_changes=true"], world_size, printed)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def test_stock_peft_on_the_untouched_base_gives_the_scores_of_the_report(
    wholes, tiny_data, tiny_model, tmp_path
):
    folders = [folder for folder, _ in wholes.values()]
    part, eva = (json.loads((one / "model/adapter_config.json").read_text()) for one in folders)
    assert (part["r"], part["lora_alpha"], part["init_lora_weights"]) == (8, 32, True)
    assert (eva["r"], eva["lora_alpha"], eva["init_lora_weights"]) == (4, 16, True)
    assert len(set(eva["rank_pattern"].values())) > 1
    rows = map(json.loads, (tiny_data / "test.jsonl").read_text().splitlines())
    assert_stock_scores_are_the_reports(
        LOAD, folders, tiny_model / "tokenizer.json", [row["code"] for row in rows], tmp_path
    )
    merged = str(tmp_path / "merged")
    assert export_main([str(folders[0]), merged, "--merge"]) == 0  # by the recipe


@pytest.mark.parametrize("start", ["pissa", "eva"])
def test_a_run_in_two_parts_is_that_in_one(start, wholes, tmp_path):
    folder, command = wholes[start]
    expected = [row["loss"] for row in read_log(folder / "log.jsonl")]
    cut_back(folder, tmp_path / "parts", 4)
    assert losses(tmp_path / "parts", command, 2, 6, "cpu_zero2") == expected  # bitwise


def test_the_state_moves_to_other_ranks(wholes, tmp_path):
    command = [*wholes["pissa"][1], "tuning.lora_dropout=0"]
    alone = losses(tmp_path / "alone", command, 1, 6, "cpu_zero0")
    assert losses(tmp_path / "three", command, 2, 6, "cpu_zero3") == pytest.approx(
        alone, rel=ROUNDING
    )
    assert len(set(alone)) == 6


def test_a_checkpoint_holds_the_start_so_that_another_decomposition_changes_nothing(wholes):
    folder, _ = wholes["pissa"]
    state = load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "state.safetensors")
    starts = {name: one for name, one in state.items() if name.endswith((".start_A", ".start_B"))}
    saved = load_file(folder / "model" / "adapter_model.safetensors")
    assert len(starts) == sum(".lora_" in name for name in saved) > 0
    for name, start in starts.items():
        layer, _, side = name.removeprefix("model.").rpartition(".start_")
        value = saved[f"{layer}.lora_{side}.weight"]
        assert torch.equal(value[4:] if side == "A" else -value[:, 4:], start)


def test_the_planner_counts_what_adapters_began_with(tiny_recipe, tmp_path):
    plain, begun = (
        resolve_here(load_run_config(tiny_recipe, given), torch.device("cpu"))
        for given in ([], words("pissa"))
    )
    layers = [(32, 48), (32, 32), (32, 64), (64, 32)]  # multi-query: 32 + 2 x 8 outputs
    started = 2 * 4 * sum(map(sum, layers))
    buffers = dict(built(tiny_recipe, tmp_path, *words("pissa")).named_buffers())
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
        ({"peft": {"init_lora_weights": "loftq"}}, "quantising loses; take tuning.method=qlora"),
        ({"variant": "dora"}, "dora, which begins with all of the base; choose one"),
        ({"init_from": "x"}, "which has weights to begin with; remove one"),
        (
            {"peft": {"init_lora_weights": "eva", "corda_config": {}}},
            "belongs to init_lora_weights",
        ),
        (
            {"peft": {"init_lora_weights": "corda", "corda_config": {"cache_file": "x"}}},
            "tuning.peft.corda_config: not taken: cache_file; allowed: corda_method",
        ),
        (
            {"peft": {"init_lora_weights": "corda", "corda_config": {"corda_method": "x"}}},
            "tuning.peft.corda_config: corda_method: Input should be 'ipm' or 'kpm', found 'x'",
        ),
        (
            {"peft": {"init_lora_weights": "eva", "eva_config": {"rho": 0.5}}},
            "`rho` must be >= 1.0",
        ),
        ({"peft": {"init_lora_weights": "pissa_niter_x"}}, "not known; allowed: true, false"),
    ],
)
def test_starts_that_cannot_be_are_refused(given, said):
    tuning = TuningSection.model_validate({"peft": {"init_lora_weights": "pissa"}} | given)
    assert any(said in fault for fault in peft_faults(tuning))


def test_a_layer_narrower_than_twice_the_rank_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(ModelError, match=r"32 wide, below .* 40"):
        built(
            tiny_recipe,
            tmp_path,
            *words("pissa", "tuning.lora_r=20", "tuning.target_modules=[c_attn]"),
        )
