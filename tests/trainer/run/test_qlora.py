"""QLoRA on the CPU, by the same code as on a GPU.

Rank 16 puts 10,880 elements into ZeRO's flat buffer, so that bitsandbytes' 8-bit optimizer, which
keeps tensors below 4,096 elements in fp32, has blocks to work on, also halved on two ranks.
"""

import json
import shutil

import bitsandbytes  # noqa: F401  # a run of this process that needs none would hide it
import pytest
import torch
import yaml
from rank_pool import run_ranks
from stock_peft import assert_stock_scores_are_the_reports
from strategies import kept_apart

from data.prepared.cache import entries
from launcher.export import main as export_main
from trainer.config.recipe import load_run_config
from trainer.errors import ModelError
from trainer.models.quantized import decoded_weight, quantized_layers
from trainer.run.build import build_model, resolve_here, write_random_base
from trainer.run_folder.folder import MANIFEST
from trainer.run_folder.metrics import read_log
from trainer.tuning.continued import adapter_folder

pytestmark = pytest.mark.usefixtures("stock_pool")
QLORA = [
    "tuning.method=qlora",
    "tuning.lora_r=16",
    "model.gradient_checkpointing=true",
    "optim.lr=3e-2",
]
STEPS = 8


@pytest.fixture(scope="module")
def wide_model(tiny_model, tmp_path_factory):
    """Rows of whole blocks: stock bitsandbytes decodes others wrongly on CPUs with AVX512."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("wide") / "model")
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(shape | {"n_embd": 64, "n_inner": 128, "initializer_range": 0.1})
    )
    return folder


@pytest.fixture(scope="module")
def tiny_recipe(tiny_recipe, wide_model, tmp_path_factory):
    """The same recipe on the wider model."""
    values = yaml.safe_load(tiny_recipe.read_text())
    values["model"]["config"] = str(wide_model)
    path = tmp_path_factory.mktemp("wide") / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(recipe, folder, *overrides, world_size=1, code=0, **options):
    """The losses of a run, or what it printed where it must fail."""
    printed = folder.with_suffix(".txt")
    command = [str(recipe), f"run.output_dir={folder}", *overrides]
    codes = run_ranks(command, world_size, printed, **options)
    assert codes == [code] * world_size, printed.read_text()[-3000:]
    if code:
        return printed.read_text()
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def trained(tiny_recipe, tmp_path_factory):
    """A finished nf4 run on one rank."""
    folder = tmp_path_factory.mktemp("qlora") / "run"
    losses = run(tiny_recipe, folder, *QLORA)
    assert losses[-1] < 0.5 * losses[0]
    return folder, losses


@pytest.mark.parametrize(("preset", "world_size"), [("cpu_zero0", 1), ("cpu_zero2", 2)])
def test_losses_do_not_depend_on_ranks_and_stage(
    preset, world_size, trained, tiny_recipe, tmp_path
):
    preset = f"engine.preset={preset}"
    losses = run(tiny_recipe, tmp_path / "run", *QLORA, preset, world_size=world_size)
    assert losses == pytest.approx(trained[1], rel=5e-6)  # sums in another order


def test_the_quantised_layers_are_listed(trained):
    printed = trained[0].with_suffix(".txt").read_text()
    assert "nf4, double quantisation, products in float32: 8 layers (c_attn, c_fc" in printed


def test_an_8_bit_base_learns_too(tiny_recipe, tmp_path):
    losses = run(tiny_recipe, tmp_path / "run", *QLORA, "tuning.quant_type=int8")
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("optimizer", "world_size"), [("adamw", 1), ("adamw_8bit", 2), ("lion_8bit", 2)]
)
def test_a_run_in_two_parts_has_the_losses_of_one_in_one(
    optimizer, world_size, tiny_recipe, tmp_path
):
    fixed = [*QLORA, f"optim.optimizer={optimizer}", "optim.schedule=constant"]
    whole = run(tiny_recipe, tmp_path / "whole", *fixed, world_size=world_size)
    for steps in (3, STEPS):
        changed = [f"optim.max_steps={steps}", "run.accept_changes=true"]
        parts = run(tiny_recipe, tmp_path / "parts", *fixed, *changed, world_size=world_size)
    assert parts == whole
    assert len(set(whole)) == STEPS


def test_moments_of_8_bit_continue_on_another_number_of_ranks(tiny_recipe, tmp_path):
    fixed = [*QLORA, "optim.optimizer=adamw_8bit", "optim.schedule=constant", "optim.lr=1e-2"]
    whole = run(tiny_recipe, tmp_path / "whole", *fixed)
    for steps, world_size in ((3, 2), (STEPS, 1)):
        changed = [f"optim.max_steps={steps}", "run.accept_changes=true"]
        parts = run(tiny_recipe, tmp_path / "parts", *fixed, *changed, world_size=world_size)
    # Blocks lie elsewhere, so codes are rounded anew, by at most half a step of the table: 1%.
    assert parts == pytest.approx(whole, rel=2e-2)
    assert parts != whole


def test_gradients_equal_those_of_the_decoded_weights_after_an_evaluation(tiny_recipe, tmp_path):
    """Where a CPU repacks 4-bit weights for inference, they were 88% off without our repair."""
    config = load_run_config(tiny_recipe, [f"run.output_dir={tmp_path}", *QLORA[:2]])
    device = torch.device("cpu")
    settled = resolve_here(config, device).config
    write_random_base(settled)
    quantised = build_model(settled)
    plain = build_model(settled.changed("tuning", method="lora", lora_r=16))
    plain.load_state_dict(
        {n: p.detach().clone() for n, p in quantised.named_parameters() if p.requires_grad},
        strict=False,
    )
    layers = dict(plain.named_modules())
    assert len(quantized_layers(quantised)) == 8
    for name, layer in quantized_layers(quantised).items():
        layers[name].weight.data.copy_(decoded_weight(layer))
    ids = torch.randint(0, 500, (1, 64), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for model in map(kept_apart, (quantised, plain)):
        backbone = model.model.get_base_model().base_model
        inputs = {"input_ids": ids, "use_cache": False, "segment_lengths": (64,)}
        with torch.no_grad():
            model.eval()
            backbone(**inputs)
        model.train()
        (backbone(**inputs).last_hidden_state * weight).sum().backward()
        named = dict(model.named_parameters())
        gradients.append(named_gradients(named))
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def named_gradients(parameters):
    found = [p.grad.flatten() for n, p in sorted(parameters.items()) if p.grad is not None]
    return torch.cat(found)


# Nothing of ours is imported: what any user of PEFT would write, on a base quantised afresh.
LOAD = """
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type=facts["quantization"]["quant_type"],
    bnb_4bit_use_double_quant=facts["quantization"]["double_quant"],
    llm_int8_skip_modules=["score"],
)
base = AutoModelForSequenceClassification.from_pretrained(
    base_name, num_labels=2, quantization_config=quantization, dtype=torch.float32
)
model = PeftModel.from_pretrained(base, adapter).eval()
for module in model.modules():  # CPUs with AVX512-BF16 repack, which this size does not fit
    module.support_avx512bf16_for_cpu = False
"""


def test_stock_peft_on_a_freshly_quantised_base_gives_the_scores_of_the_report(
    trained, tiny_data, wide_model, tmp_path
):
    folder, _ = trained
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    codes = [row["code"] for row in rows]
    assert_stock_scores_are_the_reports(
        LOAD, [folder], wide_model / "tokenizer.json", codes, tmp_path
    )


def test_merging_onto_the_decoded_base_moves_nothing_and_onto_the_full_one_says_how_much(
    trained, tmp_path, capsys
):
    folder, _ = trained
    drift = {}
    for onto in ("dequantized", "full"):
        output = tmp_path / onto
        arguments = [str(folder), str(output), "--merge", "--onto", onto]
        assert export_main(arguments) == 0, capsys.readouterr().err
        facts = json.loads((output / "focaltune.json").read_text())
        drift[onto] = facts["merge"]
        assert f"merged onto the {onto} base" in capsys.readouterr().out
        assert (output / "tokenizer.json").is_file()
        assert "quantization_config" not in json.loads((output / "config.json").read_text())
    assert export_main([str(folder), str(tmp_path / "adapter")]) == 0, capsys.readouterr().err
    assert "peft" in capsys.readouterr().out  # on a base that stock quantises afresh
    scale = drift["full"]["largest_logit"]
    assert drift["dequantized"]["max_logit_difference"] < 1e-4 * scale  # fp32, another order
    assert drift["full"]["max_logit_difference"] > 1e-3 * scale
    assert export_main([str(folder), str(tmp_path / "full"), "--merge"]) == 2
    assert "exists; give a new folder" in capsys.readouterr().err


def test_a_cached_base_is_read_back_and_gives_the_same_losses(trained, tiny_recipe, tmp_path):
    cache = f"model.quantize_cache={tmp_path / 'cache'}"
    for name in ("first", "second"):
        losses = run(tiny_recipe, tmp_path / name, *QLORA, cache)
        assert losses == trained[1]
        [entry] = entries(tmp_path / "cache")
        written = (entry / "model.safetensors").stat().st_mtime_ns
        if name == "first":
            before = written
    assert written == before


def test_init_from_continues_an_adapter(trained, tiny_recipe, tmp_path):
    folder, losses = trained
    start = f"tuning.init_from={folder}"
    continued = run(tiny_recipe, tmp_path / "run", *QLORA, start)
    assert continued[0] < 0.5 * losses[0]
    again = run(tiny_recipe, tmp_path / "again", *QLORA, f"tuning.init_from={folder / 'model'}")
    assert again == continued
    printed = run(tiny_recipe, tmp_path / "other", *QLORA[:1], start, code=4)
    assert "has r 16, this recipe 4" in printed


def test_init_from_refuses_a_damaged_adapter_and_says_what_it_cannot_verify(
    trained, tiny_recipe, tmp_path
):
    adapter = shutil.copytree(trained[0] / "model", tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 4
    weights.write_bytes(content)
    start = f"tuning.init_from={adapter}"
    printed = run(tiny_recipe, tmp_path / "run", *QLORA, start, code=4)
    assert "adapter_model.safetensors does not match its sha256" in printed
    (adapter / "focaltune.json").unlink()  # as somebody makes it a plain PEFT folder
    run(tiny_recipe, tmp_path / "plain", *QLORA, start)
    assert "has no focaltune.json: its weights are not" in (tmp_path / "plain.txt").read_text()
    (adapter / MANIFEST).unlink()  # as a folder that PEFT saved
    run(tiny_recipe, tmp_path / "run", *QLORA, start)
    assert "its weights are not verified" in (tmp_path / "run.txt").read_text()


def test_init_from_refuses_what_is_no_adapter_or_of_another_base(trained, tmp_path):
    with pytest.raises(ModelError, match=r"holds no adapter_config\.json"):
        adapter_folder(tmp_path, "x")
    with pytest.raises(ModelError, match="trained on another base"):
        adapter_folder(trained[0], "x")
