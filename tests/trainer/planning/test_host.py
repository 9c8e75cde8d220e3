"""Host memory of a node: by hand, refused where a node lacks it, and seen by plan and doctor."""

import pytest

from trainer.cluster.checks import FAULT, OK, WARNING, host_check
from trainer.cluster.facts import NodeFacts
from trainer.config.machines import DEVICES, Machine
from trainer.config.recipe import load_run_config
from trainer.errors import MachineError
from trainer.planning.host import host_memory
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve

GIB = 2**30
LIBRARIES = 0.43 * GIB + 1.5 * GIB
CLASSIFIER = ["data.seq_length=512", "data.tokenizer=data/samples/model", "tuning.lora_r=16"]


def planned(base, *keys, device="V100-16", num_ranks=8, num_nodes=1, host_gib=None):
    config = load_run_config(base, [*CLASSIFIER, *keys])
    machine = Machine(
        DEVICES[device] if device else None, num_ranks, num_nodes,
        host_bytes=None if host_gib is None else host_gib * GIB,
    )  # fmt: skip
    return resolve(config, read_shape(config), machine)


@pytest.fixture
def folder(tmp_path):
    """Qwen2.5 7B's config.json as a base with files; plans read nothing else."""
    from pathlib import Path

    source = Path("recipes/qwen2_5_coder_7b.json")
    (tmp_path / "config.json").write_text(source.read_text())
    return ["model.config=null", f"model.path={tmp_path}", "model.gradient_checkpointing=true"]


def test_ranks_hold_a_few_tensors_where_each_held_a_copy(base, folder):
    """115 GiB for eight copies in fp16: now 4 tensors of 152,064 x 3,584, or two, in each."""
    for preset, copies in (("v100x8_zero1", 4), ("v100x8_zero3", 2)):
        recipe = planned(base, *folder, f"engine.preset={preset}")
        found = host_memory(recipe)
        table = 2 * 152_064 * 3_584
        assert found.loading == copies * table + 4 * recipe.num_trained
        assert found.total == 8 * (LIBRARIES + found.loading)
        assert found.total < 0.5 * 8 * 2 * recipe.shape.num_parameters


def test_nodes_share_the_ranks_and_an_offloaded_optimizer(base, folder):
    """Masters, gradients and two moments in fp32: 16 bytes a trained parameter, in sixteenths."""
    keys = [*folder, "engine.preset=2x_v100x8_zero3_offload", "tuning.method=full"]
    recipe = planned(base, *keys, num_ranks=16, num_nodes=2)
    found = host_memory(recipe)
    assert found.num_ranks == 8
    assert found.offload == recipe.num_trained
    assert found.total == pytest.approx(8 * (LIBRARIES + recipe.num_trained))


def test_random_weights_are_drawn_on_the_host(base):
    keys = ["model.config=recipes/qwen2_5_coder_7b.json", "engine.preset=v100x8_zero1"]
    recipe = planned(base, *keys)
    whole = 2 * recipe.shape.num_parameters
    assert host_memory(recipe).loading == whole + 4 * recipe.num_trained
    quantised = host_memory(planned(base, *keys, "tuning.method=qlora"))
    assert (quantised.once, quantised.loading < 0.2 * whole) == (whole, True)


def test_a_cpu_holds_the_step_itself(base):
    recipe = planned(base, device=None, num_ranks=2)
    found = host_memory(recipe)
    assert found.total == 2 * (0.43 * GIB + found.step)
    assert found.step > 4 * recipe.shape.num_parameters


def test_a_node_without_the_memory_is_refused_with_what_to_do(base, folder):
    keys = [*folder, "tuning.method=full", "engine.preset=v100x8_zero3_offload"]
    assert not planned(base, *keys).faults  # of a machine that is only planned for
    assert not planned(base, *keys, host_gib=512).faults
    [fault] = planned(base, *keys, host_gib=100).faults
    assert isinstance(fault, MachineError)
    for part in ("of 100.0 GiB a node, by 8 ranks", "offload 13.17", "a preset without _offload"):
        assert part in str(fault)


def test_auto_offloads_only_where_the_host_has_room(base, folder):
    """LoRA of r 512 on 7B: 1.3 G parameters, 21 GB of masters, moments and gradients."""
    keys = [*folder, "tuning.lora_r=512"]
    roomy, short = (
        planned(base, *keys, device="V100-32", num_ranks=1, host_gib=gib) for gib in (500, 20)
    )
    assert roomy.preset.name == "v100x8_zero1_offload"
    assert short.preset.name == "v100x8_zero1"


def test_paged_moments_fit_beside_the_weights_or_are_refused(base, folder):
    """LoRA of r 640 on 7B: 1.6 G parameters, 15.2 GB of base, 8 bytes each of moments."""
    keys = [*folder, "tuning.lora_r=640", "engine.preset=gpu_zero1"]
    for optimizer, device, num_faults in (
        ("paged_adamw", "V100-32", 1), ("paged_adamw", "A100-40", 0),
        ("paged_adamw_8bit", "V100-32", 0), ("adamw", "V100-32", 0),
    ):  # fmt: skip
        recipe = planned(base, *keys, f"optim.optimizer={optimizer}", device=device, num_ranks=1)
        assert len(recipe.faults) == num_faults, (optimizer, device)
    [fault] = planned(
        base, *keys, "optim.optimizer=paged_adamw", device="V100-32", num_ranks=1
    ).faults
    assert "GiB of the GPU are free beside the weights; take optim.optimizer=paged" in str(fault)


def test_the_doctor_compares_with_what_a_node_has_and_what_is_free():
    facts = NodeFacts(memory_bytes=64 * GIB, free_memory_bytes=20 * GIB)
    verdicts = [host_check(gib * GIB, "x", facts).verdict for gib in (19, 21, 65)]
    assert verdicts == [OK, WARNING, FAULT]
