"""The planner against models on the meta device, sums by hand and the run itself."""

import json
import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import rank_checks
import torch
import transformers
from conftest import REPOSITORY
from rank_pool import run_ranks

from launcher.plan import main as plan_main
from trainer.architectures.adapters import num_adapter_parameters
from trainer.architectures.families import FAMILIES, model_shape
from trainer.architectures.shapes import KEY_VALUE, LAST, Linear
from trainer.config.machines import DEVICES, Machine, device_named
from trainer.config.preset import Preset
from trainer.config.recipe import load_run_config
from trainer.config.sections import TuningSection
from trainer.errors import ConfigError, ModelError
from trainer.models.files import check_model_files
from trainer.planning.change import best_change
from trainer.planning.data_facts import DataFacts, data_facts
from trainer.planning.memory import memory_of, quantised_bytes
from trainer.planning.plan import (
    communication_bytes,
    largest_micro_batch,
    make_plan,
    read_shape,
)
from trainer.planning.resolve import resolve

STARCODER = {
    "model_type": "gpt_bigcode", "activation_function": "gelu_pytorch_tanh", "attn_pdrop": 0.1,
    "resid_pdrop": 0.1, "vocab_size": 49152, "n_positions": 8192, "n_embd": 6144, "n_layer": 40,
    "n_head": 48, "n_inner": 24576, "multi_query": True,
}  # fmt: skip
CONFIGS = {
    "starcoder": STARCODER,
    "bigcode-with-many-heads": {**STARCODER, "multi_query": False, "n_layer": 2},
    "gpt2": {"model_type": "gpt2", "n_layer": 3},
    "llama-13b": {
        "model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824,
        "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40,
        "vocab_size": 32000,
    },
    "llama-grouped-biased": {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 999, "attention_bias": True, "mlp_bias": True, "head_dim": 48,
    },
    "qwen2": {
        "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    },
    "mistral": {
        "model_type": "mistral", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 999,
    },
}  # fmt: skip
ASSUMED = DataFacts(1000, 400.0, "assumed here", is_assumed=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shape_counts_what_the_model_on_the_meta_device_has(name):
    values = dict(CONFIGS[name])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, num_labels=2)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    shape = model_shape(config.to_dict())
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert (
        shape.num_parameters
        == model_shape(CONFIGS[name] | {"vocab_size": config.vocab_size}).num_parameters
    )  # config.json may leave defaults out
    layers = {
        n: m for n, m in model.base_model.named_modules()
        if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"
    }  # fmt: skip
    assert shape.num_linear_weights == sum(m.weight.numel() for m in layers.values())
    assert {linear.name for linear in shape.linears} == {n.rpartition(".")[2] for n in layers}
    masks = [b for n, b in model.named_buffers() if n.endswith("bias")]
    assert shape.mask_bytes == sum(mask.nbytes for mask in masks)


UNLISTED = {
    "starcoder2": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 300,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "phi": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 300,
        "num_attention_heads": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("is_language", [True, False])
@pytest.mark.parametrize("name", UNLISTED)
def test_a_type_without_an_entry_is_counted_from_its_model(name, is_language):
    assert name not in FAMILIES
    config = transformers.AutoConfig.for_model(name, **UNLISTED[name], num_labels=2)
    kind = (
        transformers.AutoModelForCausalLM
        if is_language
        else transformers.AutoModelForSequenceClassification
    )
    with torch.device("meta"):
        model = kind.from_config(config)
    shape = model_shape({"model_type": name, **UNLISTED[name]}, is_language=is_language)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    layers = [m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.num_linear_weights == sum(m.weight.numel() for m in layers) > 0
    section = TuningSection(lora_r=4)
    adapters = sum(4 * (m.in_features + m.out_features) for m in layers)
    assert num_adapter_parameters(shape, section) == adapters


def test_a_type_is_added_with_one_entry(monkeypatch):
    """Falcon's names on the shape of another: the planner and the methods then know its layers."""
    entry = replace(
        model_shape(CONFIGS["gpt2"]),
        linears=(
            Linear("self_attention.kv", 64, 64, True, "norm", 3, roles=frozenset({KEY_VALUE})),
            Linear("mlp.dense", 80, 64, True, "activation", 3, roles=frozenset({LAST})),
        ),
    )
    monkeypatch.setitem(FAMILIES, "one_of_mine", lambda config: entry)
    shape = model_shape({"model_type": "one_of_mine"}, is_language=True)
    assert shape.head == "tied"
    assert num_adapter_parameters(shape, TuningSection(method="ia3")) == 3 * (64 + 80)


def test_a_type_that_transformers_does_not_know_is_named():
    with pytest.raises(ModelError, match="model_type 'mine': transformers builds no such model"):
        model_shape({"model_type": "mine"})


@pytest.fixture
def starcoder(base, tmp_path):
    """StarCoder, 15.5 B parameters, at 2,048 tokens."""
    (tmp_path / "config.json").write_text(json.dumps(STARCODER))
    return load_run_config(
        base,
        [f"model.config={tmp_path}", "data.tokenizer=data/samples/model", "data.seq_length=2048",
         "model.gradient_checkpointing=true", "tuning.lora_dropout=0.0"],
    )  # fmt: skip


def resolved(config, machine):
    """Resolved for a machine, with the accumulation of the assumed data."""
    accumulation = ASSUMED.steps(config.data, config.optim, machine.num_ranks).accumulation
    return replace(resolve(config, read_shape(config), machine), accumulation=accumulation)


def under(recipe, stage, **more):
    """The recipe under a preset of its own."""
    zero = {"stage": stage, **{k: v for k, v in more.items() if k.startswith("stage3")}}
    rest = {key: value for key, value in more.items() if key not in zero}
    return replace(recipe, preset=Preset("own", {"zero_optimization": zero, **rest}))


def test_weights_of_4_bit_cost_what_the_paper_says(starcoder):
    """Dettmers et al. 2023, section 3: scales cost 0.5 bits a weight, doubly quantised 0.127."""
    job = resolved(starcoder, Machine(DEVICES["H100"], 1))
    assert 8 * quantised_bytes(job.changed("tuning", double_quant=False)) == pytest.approx(4.5)
    assert 8 * quantised_bytes(job) == pytest.approx(4.127, abs=5e-4)


def test_the_components_of_lora_on_starcoder_by_hand(starcoder):
    """15.5 B bf16 weights; 27.6 M trained: 2 + 4 + 8 bytes each, masters and moments halved."""
    memory = memory_of(resolved(starcoder, Machine(DEVICES["A100-80"], 2)))
    base = 15_517_456_384  # the model on the meta device, without the head
    adapters = 40 * 8 * ((6144 + 6400) + (6144 + 6144) + 2 * (6144 + 24576))
    trained = adapters + 2 * 6144
    assert memory.frozen_weights == 2 * base + 8192**2
    assert memory.trained_weights == 2 * trained
    assert memory.master_weights == 4 * trained / 2
    assert memory.moments == 8 * trained / 2
    # 40 inputs of blocks and one block whole, in bf16: norms 2 D, adapters 3 D + F + 4 r and the
    # attention output shared, query to output D + 2 K + D and a log-sum-exp, GELU F, masks 2 D.
    d, f, t = 6144, 24576, 2048
    block = 2 * (2 * d + 8) + 2 * (2 * d + f + 32) + 2 * (2 * d + 256) + 4 * 48 + 2 * f + 2 * d
    outside = 2 * d  # no mask of whole rows
    assert memory.activations == pytest.approx(t * (40 * 2 * d + block + outside), rel=1e-3)
    # Without recomputation: 40 blocks whole, but for the first norm, before which nothing learns.
    kept = starcoder.changed("model", gradient_checkpointing=False)
    memory = memory_of(resolved(kept, Machine(DEVICES["A100-80"], 2)))
    assert memory.activations == t * (40 * block - (2 * d + 8) + outside)


LLAMA = CONFIGS["llama-13b"] | {"tie_word_embeddings": False}


@pytest.fixture
def llama(base, tmp_path):
    """A language model of 13 B parameters, its output layer its own, trained whole by 8 ranks."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return load_run_config(
        base,
        [f"model.config={tmp_path}", "data.tokenizer=data/samples/model", "data.seq_length=512",
         "task.name=instruction", "model.gradient_checkpointing=true", "tuning.method=full",
         "engine.preset=gpu_zero3"],
    )  # fmt: skip


def language_job(config, num_ranks=8):
    return resolved(config, Machine(DEVICES["A100-80"], num_ranks))


def test_full_tuning_of_a_language_model_under_zero_3_by_hand(llama):
    """13,015,864,320 parameters (LLaMA 13B): an eighth of 2 + 4 + 8 bytes each, 1e9 gathered."""
    memory = memory_of(language_job(llama))
    num = 13_015_864_320
    assert memory.trained_weights == 2 * (num / 8 + 1e9)
    assert memory.master_weights == 4 * num / 8
    assert memory.moments == 8 * num / 8
    assert memory.gradients == (2 + 4) * num / 8
    assert memory.frozen_weights == 0


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_trained_output_layer_sums_its_gradient_in_fp32_beside_the_chunk(
    is_tied, llama, tmp_path
):
    """Hidden states and their gradients, V x D in fp32 and once more in bf16, 640 MiB of logits."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"tie_word_embeddings": is_tied}))
    tokens = 4 * 512  # more rows, and what the widest layer has in flight would be more
    expected = 2 * 2 * 5120 * tokens + (4 + 2) * 32000 * 5120 + (640 << 20)
    job = language_job(llama).changed("optim", micro_batch_size=4)
    job = job.changed("model", gradient_checkpointing=False)
    memory = memory_of(job)
    assert memory.activations > 0  # the peak is at the loss, not at the update
    assert memory.working == expected
    frozen = llama.changed("tuning", method="lora")
    frozen_job = under(language_job(frozen), 1).changed("optim", micro_batch_size=4)
    assert memory_of(frozen_job).working == expected - 6 * 32000 * 5120
    whole = frozen.changed("tuning", modules_to_save=["lm_head"])
    whole_job = language_job(whole)
    assert whole_job.num_trained - frozen_job.num_trained == 32000 * 5120


def test_full_fine_tuning_of_starcoder_by_hand(starcoder):
    """2 + 2 bytes a parameter for weight and gradient, 4 + 8 + 4 shared by 8 ranks; ZeRO 3 shares
    all of it, and holds a billion parameters gathered."""
    config = starcoder.changed("tuning", method="full")
    machine = Machine(DEVICES["A100-80"], 8)
    trained = 15_517_456_384 + 2 * 6144
    for preset, of_weight in (("gpu_zero1", trained), ("gpu_zero3", trained / 8 + 1e9)):
        on = config.changed("engine", preset=preset)
        job = resolved(on, machine)
        memory = memory_of(job)
        assert job.num_trained == trained
        assert memory.trained_weights == 2 * of_weight
        assert memory.master_weights == 4 * trained / 8
        assert memory.moments == 8 * trained / 8
        held = trained / 8 if preset == "gpu_zero3" else trained
        assert memory.gradients == pytest.approx(2 * held + 4 * trained / 8)
    alone = config.changed("engine", preset="gpu_zero1")
    assert not make_plan(resolved(alone, Machine(DEVICES["A100-80"], 1)), ASSUMED).fits


def test_virtual_tokens_take_positions_and_memory(starcoder):
    prompted = starcoder.changed("tuning", method="ptuning").changed("data", packing=False)
    plain = starcoder.changed("data", packing=False)
    machine = Machine(DEVICES["A100-80"], 1)
    jobs = [resolved(config, machine) for config in (plain, prompted)]
    assert [job.num_tokens for job in jobs] == [2048, 2078]
    check_model_files(prompted.changed("data", seq_length=8162), 100)
    with pytest.raises(ConfigError, match=r"30 virtual tokens .* lower it to 8162"):
        check_model_files(prompted.changed("data", seq_length=8163), 100)


def test_the_largest_micro_batch_fits_and_one_row_more_does_not(starcoder):
    limit = DEVICES["A100-40"].memory_gib * 2**30
    job = resolved(starcoder, Machine(DEVICES["A100-40"], 1))
    largest = largest_micro_batch(job, limit)
    assert largest > 1
    assert memory_of(job.changed("optim", micro_batch_size=largest)).total <= limit
    assert memory_of(job.changed("optim", micro_batch_size=largest + 1)).total > limit


@pytest.mark.parametrize(
    ("device", "config_change", "expected"),
    [
        ("T4", {}, "tuning.method=qlora"),
        ("A100-40", {"optim": {"micro_batch_size": 64}}, "optim.micro_batch_size=4"),
        (
            "RTX4080",
            {"tuning": {"method": "qlora"}, "model": {"gradient_checkpointing": False}},
            "model.gradient_checkpointing=true",
        ),
        ("T4", {"tuning": {"method": "ia3"}}, "tuning.quant_type=nf4"),
        (
            "A100-80",
            {"tuning": {"method": "full"}, "engine": {"preset": "gpu_zero3"}},
            "engine.preset=gpu_zero1_offload",
        ),
    ],
)
def test_the_best_single_change_fits_and_the_recipe_without_it_does_not(
    device, config_change, expected, starcoder
):
    config = starcoder
    for section, values in config_change.items():
        config = config.changed(section, **values)
    shape, machine = read_shape(config), Machine(DEVICES[device], 1)
    assert not make_plan(resolved(config, machine), ASSUMED).fits
    change = best_change(resolve(config, shape, machine), ASSUMED)
    assert change.override == expected
    assert change.plan.fits


def test_a_model_that_no_single_change_saves_still_gets_the_one_that_helps_most(starcoder):
    shape, machine = read_shape(starcoder), Machine(DEVICES["RTX3060"], 1)
    config = starcoder.changed("model", gradient_checkpointing=False)
    change = best_change(resolve(config, shape, machine), ASSUMED)
    assert change.override == "tuning.method=qlora"
    assert not change.plan.fits


def test_what_a_device_cannot_run_is_a_fault_whatever_its_memory(starcoder):
    config = starcoder.changed("engine", precision="bf16")
    config = config.changed("tuning", method="qlora", quant_type="int8")
    plan = make_plan(resolved(config, Machine(DEVICES["V100-32"], 1)), ASSUMED)
    assert not plan.fits
    assert any("bf16 needs" in fault for fault in plan.faults)
    assert any("int8 needs a GPU of sm75" in fault for fault in plan.faults)


def test_communication_is_that_of_rings(starcoder):
    """2 (n - 1) / n of the gradients, (n - 1) / n of the weights, in bf16; alone nothing."""
    shape = read_shape(starcoder)
    sent = [
        communication_bytes(resolved(starcoder, Machine(DEVICES["H100"], n)), 1) for n in (1, 2, 4)
    ]
    trained = num_adapter_parameters(shape, TuningSection()) + shape.num_head_parameters
    assert sent == [0, 3 * trained * 2 * 0.5, 3 * trained * 2 * 0.75]


def test_what_a_step_sends_by_stage_accumulation_and_dtype(starcoder):
    """As DeepSpeed's logger counts them (benchmarks/communication.py): 3 micro-batches, 2 ranks."""
    shape = read_shape(starcoder)
    config = starcoder.changed("model", gradient_checkpointing=False)
    job = resolved(config, Machine(DEVICES["H100"], 2))
    n, whole, layers = job.num_trained, shape.num_parameters, shape.num_linear_weights
    assert job.config.engine.precision == "bf16"
    share = 0.5
    # (gradients, there and back), (weights), in bf16
    assert communication_bytes(under(job, 1), 3) == share * 2 * (2 * n + n)
    assert communication_bytes(under(job, 2), 3) == share * 2 * (3 * 2 * n + n)
    in_fp32 = under(job, 1, communication_data_type="fp32")
    assert communication_bytes(in_fp32, 3) == share * (2 * 4 * n + 2 * n)
    # above 10^9 parameters every layer is gathered for the forward and the backward pass
    large = share * 2 * 3 * (2 * n + (whole - layers) + 2 * layers)
    assert communication_bytes(under(job, 3), 3) == pytest.approx(large)
    small = share * 2 * 3 * (2 * n + whole)
    kept = under(job, 3, stage3_max_live_parameters=10**11)
    assert communication_bytes(kept, 3) == pytest.approx(small)


def test_devices_are_found_however_their_names_are_written():
    assert device_named("rtx 4090") is DEVICES["RTX4090"]
    assert device_named("4080").name == "RTX4080"
    assert device_named("a100_80").precision == "bf16"
    assert device_named("t4").precision == "fp16"
    with pytest.raises(ConfigError, match="did you mean H100"):
        device_named("H1000")


def test_the_command_prints_json_and_its_exit_code_tells_whether_it_fits(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(STARCODER))
    recipe = [str(REPOSITORY / "recipes" / "vuln_java_lora.yaml"), f"model.config={tmp_path}",
              f"data.path={REPOSITORY / 'data' / 'samples'}"]  # fmt: skip
    assert plan_main([*recipe, "--device", "H100", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    assert plan["memory"]["total"] == pytest.approx(
        sum(v for k, v in plan["memory"].items() if k != "total")
    )
    assert plan_main([*recipe, "--device", "T4"]) == 5
    captured = capsys.readouterr()
    assert "best single change: tuning.method=qlora is enough" in captured.out
    assert "does not fit 1 x T4" in captured.err
    assert plan_main([*recipe, "--memory", "100"]) == 0
    assert plan_main([*recipe]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in DEVICES)
    assert plan_main([*recipe, "--device", "T5"]) == 2


def test_the_plan_of_a_language_task_counts_records(tmp_path, capsys):
    recipe = str(REPOSITORY / "recipes" / "instruction_sample.yaml")
    assert plan_main([recipe, f"run.output_dir={tmp_path}", f"data.cache_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "1,000 records, 400 tokens on average (ASSUMED 1,000 records of" in printed
    assert "functions" not in printed


def test_the_command_imports_neither_torch_nor_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(STARCODER))
    code = (
        "import sys; from launcher.plan import main; main(sys.argv[1:]);"
        "print(sorted({'torch', 'transformers', 'deepspeed'} & sys.modules.keys()))"
    )
    recipe = str(REPOSITORY / "recipes" / "vuln_java_lora.yaml")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, recipe, f"model.config={tmp_path}", "data.path=data/samples"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which does not depend on what else runs here; the clock said 0.4 to 0.8 s.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.slow
def test_the_steps_of_the_plan_are_those_of_the_run_and_the_start_shows_both(tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    overrides = [f"run.output_dir={folder}", "optim.epochs=2", "optim.max_steps=null"]
    assert data_facts(
        load_run_config(tiny_recipe, [*overrides, f"data.cache_dir={tmp_path}"])
    ).is_assumed
    assert run_ranks([str(tiny_recipe), *overrides], 1, printed) == [0]
    config = load_run_config(tiny_recipe, overrides)
    for facts in (data_facts(config), data_facts(config.changed("run", output_dir="/none"))):
        assert not facts.is_assumed
        assert facts.num_functions == 40
        assert (
            f"steps      {facts.steps(config.data, config.optim, 1).num} (" in printed.read_text()
        )
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["num_steps"] == facts.steps(config.data, config.optim, 1).num
    line = next(line for line in printed.read_text().splitlines() if "  memory  " in line)
    planned, measured = (
        float(line.split(f"{word} ")[-1].split(" ")[0].rstrip(","))
        for word in ("planned", "measured")
    )
    # 152,000 fp32 weights and a 2,048 x 2,048 mask: 4.6 MiB, shown to a thousandth of a GiB.
    assert planned == pytest.approx(measured, abs=0.0011)
    assert measured > 0.003


@pytest.mark.slow
def test_116_out_of_memory_names_the_row_the_checkpoint_and_the_best_change(tiny_recipe, tmp_path):
    printed = tmp_path / "printed"
    command = [
        str(tiny_recipe), f"run.output_dir={tmp_path / 'run'}", "save.interval=1",
        "optim.micro_batch_size=2", "optim.global_batch_size=40",
    ]  # fmt: skip
    codes = run_ranks(command, 1, printed, entry=rank_checks.run_out_of_memory)
    assert codes == [5], printed.read_text()[-2000:]
    text = printed.read_text()
    assert "error: out of memory at step " in text
    assert "micro-batch of shape (2, " in text
    assert "is intact" in text
    assert "optimizer moments" in text
    assert "best single change: optim.micro_batch_size=1 is enough" in text
    assert "Traceback" not in text
