"""The DeepSpeed presets, and which one engine.preset=auto takes on which machine, and why."""

import json
from pathlib import Path

import pytest
import rank_checks
from rank_pool import run_ranks

from benchmarks.scaling import table
from trainer.config.machines import DEVICES, Device, Machine
from trainer.config.preset import PRESET_FOLDER, load_preset
from trainer.config.recipe import load_run_config
from trainer.planning.memory import memory_of
from trainer.planning.plan import read_shape
from trainer.planning.resolve import choose_preset, preset_family, resolve
from trainer.run_folder.metrics import read_log

REPOSITORY = Path(__file__).resolve().parents[3]
FAMILIES = ("gpu", "t4", "rtx4080", "v100x8", "a100x2", "h100", "2x_v100x8")
STAGES = ("zero0", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload")
GPU_PRESETS = [f"{family}_{stage}" for family in FAMILIES for stage in STAGES]
STARCODER = REPOSITORY / "recipes" / "starcoder_15b.json"


def test_every_machine_has_every_stage_with_and_without_offload():
    found = {path.stem for path in PRESET_FOLDER.glob("*.json")}
    assert found == {*GPU_PRESETS, *(f"cpu_zero{stage}" for stage in range(4))}


@pytest.mark.parametrize("name", GPU_PRESETS)
def test_a_preset_offloads_as_its_name_says_and_keeps_our_optimizer(name):
    preset = load_preset(name)
    assert ("offload_optimizer" in preset.zero) is name.endswith("_offload")
    # DeepSpeed would else demand its own CPU Adam, which it compiles for a minute
    assert preset.settings.get("zero_force_ds_cpu_optimizer", True) is not name.endswith("_offload")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readme_has_a_table_of_every_machine(family):
    text = (PRESET_FOLDER / "README.md").read_text()
    assert f"| `{family}_zero1` |" in text
    assert f"| `{family}_zero3_offload` |" in text


@pytest.mark.parametrize(
    ("name", "nodes", "family"),
    [
        ("Tesla T4", 1, "t4"),
        ("T4", 1, "t4"),
        ("NVIDIA T400 4GB", 1, "gpu"),
        ("NVIDIA GeForce RTX 4080 SUPER", 1, "rtx4080"),
        ("RTX4080", 1, "rtx4080"),
        ("Tesla V100-SXM2-16GB", 1, "v100x8"),
        ("Tesla V100-SXM2-16GB", 2, "2x_v100x8"),
        ("V100-32", 2, "2x_v100x8"),
        ("NVIDIA A100-SXM4-80GB", 1, "a100x2"),
        ("A100-40", 2, "a100x2"),
        ("NVIDIA H100 80GB HBM3", 1, "h100"),
        ("NVIDIA H200", 1, "h100"),
        ("NVIDIA L4", 1, "gpu"),
    ],
)
def test_the_family_is_the_gpus(name, nodes, family):
    assert preset_family(Machine(Device(name, 16, None, (8, 0)), 8, nodes)) == family
    assert preset_family(Machine(None, 8, nodes)) == "cpu"


@pytest.fixture
def starcoder(base):
    """LoRA on 15.5 B parameters in 16 bit: 31 GB of base."""
    return load_run_config(
        base,
        [f"model.config={STARCODER}", "data.seq_length=512", "data.tokenizer=data/samples/model",
         "model.gradient_checkpointing=true"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "preset", "reason"),
    [
        (Machine(DEVICES["A100-80"], 2), "a100x2_zero1", "for 2 x A100-80; shards the optimizer"),
        (Machine(DEVICES["H200"], 1), "h100_zero1", "for 1 x H200; "),
        (Machine(None, 2), "cpu_zero1", "shards the optimizer and keeps one all-reduce"),
        (Machine(None, 1), "cpu_zero0", "nothing to shard: one rank in fp32"),
        # 29 GiB of base beside activations: alone too much, in eighths it is not
        (Machine(DEVICES["V100-16"], 8), "v100x8_zero3", "of zero1 do not fit 15.8"),
        (Machine(DEVICES["V100-16"], 16, 2), "2x_v100x8_zero3", "on 2 nodes; shards the base"),
        (Machine(DEVICES["T4"], 1), "t4_zero1", "no stage fits 14.7: launcher/plan.py says"),
    ],
    ids=lambda value: value.name if isinstance(value, Machine) else "",
)
def test_auto_takes_the_first_stage_that_fits_and_says_why(machine, preset, reason, starcoder):
    name, why = choose_preset(starcoder, read_shape(starcoder), machine)
    assert name == preset, why
    assert reason in why


def test_one_rank_is_sharded_where_the_losses_would_not_be_the_same(starcoder):
    """16-bit gradients and 8-bit moments."""
    alone, shape = Machine(None, 1), read_shape(starcoder)
    assert choose_preset(starcoder, shape, alone)[0] == "cpu_zero0"
    for section, keys in (
        ("engine", {"precision": "bf16"}),
        ("optim", {"optimizer": "adamw_8bit"}),
    ):
        assert choose_preset(starcoder.changed(section, **keys), shape, alone)[0] == "cpu_zero1"


def test_auto_shards_the_weights_where_all_of_them_are_trained(starcoder):
    """31 GB each of weights and gradients, and 12 bytes of masters and moments a parameter."""
    config = starcoder.changed("tuning", method="full")
    name, why = choose_preset(config, read_shape(config), Machine(DEVICES["V100-32"], 16, 2))
    assert name == "2x_v100x8_zero3", why
    assert "shards the base too" in why


def test_auto_offloads_where_the_optimizer_is_what_does_not_fit(starcoder):
    """Embeddings and r 512 trained whole: 1.8 G parameters, 22 GB of masters and moments."""
    config = starcoder.changed("tuning", lora_r=512)
    shape = read_shape(config)
    name, why = choose_preset(config, shape, Machine(DEVICES["A100-40"], 2))
    assert name == "a100x2_zero1_offload", why
    assert "keeps the optimizer on the host" in why


def test_offload_takes_masters_and_moments_off_the_gpu_and_leaves_them_on_a_cpu(starcoder):
    shape = read_shape(starcoder)
    resident, offloaded = (
        resolve(with_preset(starcoder, name), shape, Machine(DEVICES["H100"], 2))
        for name in ("h100_zero1", "h100_zero1_offload")
    )
    assert memory_of(resident).moments == 8 * resident.num_trained / 2
    assert memory_of(offloaded).moments == memory_of(offloaded).master_weights == 0
    on_cpu = resolve(with_preset(starcoder, "h100_zero1_offload"), shape, Machine(None, 2))
    assert memory_of(on_cpu).moments == 8 * resident.num_trained / 2


def test_an_explicit_preset_is_taken_whatever_the_machine(starcoder):
    config = with_preset(starcoder, "t4_zero2")
    assert choose_preset(config, read_shape(config), Machine(None, 1)) == (
        "t4_zero2",
        "set by the recipe",
    )


@pytest.mark.slow
def test_every_gpu_preset_starts_and_updates(tiny_recipe, tmp_path):
    """One rank on the CPU, in the precision of the preset's GPUs, through DeepSpeed's own parser.

    Names and values of every key are what DeepSpeed then has, and the weights move.
    """
    older = ("t4", "v100x8", "2x_v100x8")
    names = [
        f"{family}_{stage}:"
        + ("fp32" if stage == "zero0" else "fp16" if family in older else "bf16")
        for family in FAMILIES
        for stage in STAGES
    ]
    printed = tmp_path / "printed"
    codes = run_ranks(
        [str(tiny_recipe), *names], 1, printed, allow_fp16=True, entry=rank_checks.start_presets
    )
    assert codes == [0], printed.read_text()[-3000:]
    lines = [line for line in printed.read_text().splitlines() if line.startswith("{")]
    found = {one["name"]: one for one in map(json.loads, lines)}
    assert found.keys() == set(GPU_PRESETS)
    for name, one in found.items():
        preset = load_preset(name)
        assert one["stage"] == preset.stage, name
        assert not one["odd"], (name, one["odd"])
        assert 0 < one["moved"] < 1, name
        sent = {"fp16": "torch.float16", "bf16": "torch.bfloat16", "fp32": "torch.float32"}
        if preset.communication_dtype:
            assert one["sent"] == sent[preset.communication_dtype], name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_deepspeed_does_not_know_is_refused_by_it(family):
    """The guard of the test above: its parser forbids what it does not know."""
    from deepspeed.runtime.config import DeepSpeedConfig

    zero = {**load_preset(f"{family}_zero2").zero, "overlap_com": True}
    with pytest.raises(ValueError, match="overlap_com"):
        DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero})


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_trains_to_the_same_losses_and_continues(
    stage, tiny_recipe, tmp_path
):
    """4 steps, then 4 more from the checkpoint, against 8 without offload; fp32, two ranks.

    5e-6 relative: the norm of the gradients is summed in another order.
    """
    whole = losses(tiny_recipe, tmp_path / "whole", f"cpu_zero{stage}", 8)
    preset = f"gpu_zero{stage}_offload"
    losses(tiny_recipe, tmp_path / "parts", preset, 4)
    parts = losses(tiny_recipe, tmp_path / "parts", preset, 8)
    assert len(whole) == 8
    assert max(whole) > 2 * min(whole)
    assert parts == pytest.approx(whole, rel=5e-6)
    settings = json.loads((tmp_path / "parts" / "ds_config.json").read_text())
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def losses(recipe: Path, folder: Path, preset: str, steps: int) -> list[float]:
    command = [
        str(recipe), f"run.output_dir={folder}", f"engine.preset={preset}", "eval.interval=never",
        f"optim.max_steps={steps}", "optim.schedule=constant", "run.accept_changes=true",
    ]  # fmt: skip
    printed = folder.with_suffix(".txt")
    assert run_ranks(command, 2, printed) == [0, 0], printed.read_text()[-2000:]
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def with_preset(config, name):
    return config.changed("engine", preset=name)


def test_the_scaling_page_is_what_the_formulas_say():
    """Bytes by hand for two A100 under zero1: half of 2 + 1 times the adapters in bf16."""
    page = (PRESET_FOLDER / "SCALING.md").read_text()
    for device, network in (("A100-80", 200), ("A100-80", 10), ("V100-32", 100)):
        assert table(device, network) in page, "run benchmarks/scaling.py again"
    # query-key-value and both projections of 24 blocks, r 16, and the classification head
    adapters = 24 * 16 * ((2048 + 2304) + (2048 + 2048) + 2 * (2048 + 8192)) + 2 * 2048
    assert f"{3 * 2 * adapters / 2 / 1e6:.3g} MB, 9.02 s" in page
