"""Every `auto` is settled once, with its reason; what cannot be had is a fault of the recipe."""

import pytest
from conftest import REPOSITORY

from trainer.config.machines import DEVICES, Device, Machine, other_device
from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError, MachineError, ModelError
from trainer.planning.memory import memory_of
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve

CPU = Machine(None, 1)
QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"


def resolved(machine, *overrides):
    config = load_run_config(QUICKSTART, overrides)
    return resolve(config, read_shape(config), machine)


def gpu(capability, **more):
    return Machine(Device("a GPU", 16, None, capability), 1, **more)


def test_no_auto_is_left_and_the_recipe_is_kept_as_written():
    recipe = resolved(Machine(DEVICES["T4"], 1), "task.name=instruction")
    for key in recipe.reasons:
        section, name = key.split(".")
        assert getattr(getattr(recipe.written, section), name) == "auto"
        assert getattr(getattr(recipe.config, section), name) != "auto"
    assert len(recipe.reasons) == 5
    assert (
        recipe.choice("engine.precision") == "fp16 (GPU older than sm80 has no bf16 tensor cores)"
    )
    assert recipe.preset.name == recipe.config.engine.preset == "t4_zero1"
    assert recipe.faults == ()


@pytest.mark.parametrize("wanted", ["auto", "reference"])
def test_classification_needs_no_kernel(wanted):
    recipe = resolved(CPU, f"loss.backend={wanted}")
    assert recipe.config.loss.backend == "reference"
    assert recipe.faults == ()


@pytest.mark.parametrize("wanted", ["torch", "triton"])
def test_a_fused_loss_is_refused_for_classification(wanted):
    (fault,) = resolved(CPU, f"loss.backend={wanted}").faults
    assert isinstance(fault, ConfigError)
    assert "take auto or reference" in str(fault)


def test_without_a_gpu_a_language_task_takes_torch_and_says_why():
    language = "task.name=instruction"
    assert resolved(CPU, language).choice("loss.backend") == (
        "torch (Triton kernels need a GPU, the device is cpu)"
    )
    (fault,) = resolved(CPU, language, "loss.backend=triton").faults
    assert isinstance(fault, ConfigError)
    assert "take auto or torch" in str(fault)
    for wanted in ("torch", "reference"):
        recipe = resolved(CPU, language, f"loss.backend={wanted}")
        assert (recipe.config.loss.backend, recipe.faults) == (wanted, ())


@pytest.mark.parametrize(
    ("capability", "has_triton", "backend", "reason"),
    [
        ((8, 0), True, "triton", "fused kernel on the GPU"),
        ((7, 0), True, "triton", "fused kernel on the GPU"),
        ((6, 1), True, "torch", "sm70 or newer"),
        ((8, 0), False, "torch", "not installed"),
    ],
)
def test_a_gpu_takes_triton_where_it_runs(capability, has_triton, backend, reason):
    machine, task = gpu(capability, has_triton=has_triton), "task.name=causal_lm"
    recipe = resolved(machine, task)
    assert recipe.config.loss.backend == backend
    assert reason in recipe.reasons["loss.backend"]
    faults = resolved(machine, task, "loss.backend=triton").faults
    assert [reason in str(fault) for fault in faults] == ([True] if backend == "torch" else [])


@pytest.mark.parametrize(
    ("machine", "precision", "attention"),
    [
        (CPU, "auto", "segment_sdpa"),
        (gpu((8, 0), has_flash=True), "auto", "flash_attention_2"),
        (gpu((8, 0), has_flash=True), "fp32", "sdpa"),
        (gpu((8, 0), has_flash=False), "auto", "torch_varlen"),
        (gpu((8, 0)), "auto", "torch_varlen"),  # planned for: flash_attn may not be installed
        (gpu((7, 0)), "auto", "torch_efficient"),
        (gpu((7, 0)), "fp32", "sdpa"),
    ],
)
def test_attention_follows_machine_and_precision(machine, precision, attention):
    recipe = resolved(machine, f"engine.precision={precision}")
    assert recipe.config.model.attention == attention


@pytest.mark.parametrize(
    ("machine", "precision", "is_refused"),
    [
        (CPU, "auto", True),
        (gpu((8, 0), has_flash=False), "auto", True),
        (gpu((8, 0), has_flash=True), "fp32", True),
        (gpu((8, 0), has_flash=True), "auto", False),
        (gpu((8, 0)), "auto", False),
    ],
)
def test_flash_attention_is_refused_where_it_cannot_run(machine, precision, is_refused):
    wanted = "model.attention=flash_attention_2"
    faults = resolved(machine, wanted, f"engine.precision={precision}").faults
    assert [isinstance(fault, ModelError) for fault in faults] == [True] * is_refused


@pytest.mark.parametrize(
    ("overrides", "choice"),
    [
        ([], "fused (plain linear layers: no fp32 copy of the activations)"),
        (["tuning.method=qlora"], "fused (4-bit layers: each weight is decoded and freed at once)"),
        (["tuning.quant_type=int8"], "peft (the fused layer does not support an 8-bit base)"),
        (["tuning.variant=dora"], "peft (the fused layer does not support dora)"),
        (["tuning.lora_backend=peft"], "peft (set by the recipe)"),
    ],
)
def test_what_computes_lora_follows_the_recipe(overrides, choice):
    assert resolved(CPU, *overrides).choice("tuning.lora_backend") == choice


@pytest.mark.parametrize("other", ["tuning.variant=dora", "tuning.quant_type=int8"])
def test_the_fused_layer_is_refused_where_it_cannot_be_had(other):
    with pytest.raises(ConfigError, match=r"supports neither .*; take auto or peft"):
        resolved(CPU, "tuning.lora_backend=fused", other)
    assert "tuning.lora_backend" not in resolved(CPU, "tuning.method=ia3").reasons


def test_fp16_is_refused_where_the_machine_does_not_compute_in_it():
    faults = resolved(Machine(None, 1, has_fp16=False), "engine.precision=fp16").faults
    assert isinstance(faults[0], MachineError)
    assert "take engine.precision auto" in str(faults[0])
    assert resolved(CPU, "engine.precision=fp16").faults == ()


@pytest.mark.parametrize(
    ("memory_gib", "unit", "global_batch", "expected"),
    [
        (1000, "examples", 32, 8),  # all of a rank's 8 in one pass
        (1000, "examples", 30, 8),  # 7.5 of a rank
        (1000, "rows", 32, 8),
        (4.0, "examples", 32, None),
        (3.75, "rows", 24, None),  # 6 of a rank: 1, 2, 3 or 6
        (0.5, "examples", 32, 1),
    ],
)
def test_an_automatic_micro_batch_is_the_largest_that_fits(
    memory_gib, unit, global_batch, expected, base
):
    keys = ["optim.micro_batch_size=auto", f"optim.global_batch_size={global_batch}"]
    keys += [f"optim.batch_unit={unit}", "model.config=recipes/starcoderbase_1b.json"]
    keys += ["data.seq_length=512", "data.tokenizer=data/samples/model"]
    keys += ["engine.preset=gpu_zero1", "model.gradient_checkpointing=true"]
    config = load_run_config(base, keys)
    machine = Machine(other_device(memory_gib), 4)
    recipe = resolve(config, read_shape(config), machine)
    rows = recipe.config.optim.micro_batch_size
    assert rows == recipe.config.optim.micro_rows
    assert recipe.written.optim.micro_batch_size == "auto"
    if expected is not None:
        assert rows == expected
        return
    most, fits = -(-global_batch // 4), 0.9 * memory_gib * 2**30
    assert 1 < rows < most
    possible = [n for n in range(1, most + 1) if unit == "examples" or most % n == 0]
    passes = {-(-most // n) for n in possible if peak(recipe, n) <= fits}
    assert -(-most // rows) == min(passes)  # as few passes as any number that fits
    assert peak(recipe, rows) <= fits


def peak(recipe, rows):
    return memory_of(recipe.changed("optim", micro_batch_size=rows)).total


def test_an_automatic_micro_batch_on_a_cpu_takes_a_share_of_half_the_host(base):
    keys = ["optim.micro_batch_size=auto", "optim.global_batch_size=64"]
    config = load_run_config(base, keys)
    shape = read_shape(config)
    unknown, small, large = (
        resolve(config, shape, Machine(None, 2, host_bytes=size))
        for size in (None, 2 * 2**30, 2**40)
    )
    assert unknown.config.optim.micro_batch_size == 1
    assert large.config.optim.micro_batch_size == 32
    assert 1 <= small.config.optim.micro_batch_size < 32
    assert peak(small, small.config.optim.micro_batch_size) <= 2**30 / 2
