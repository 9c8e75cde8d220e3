"""The table of what cannot run, against rules written out independently, over every combination."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer.config.capabilities import MACHINE_LIMITS, STACK_LIMITS, refusals
from trainer.config.machines import Device
from trainer.config.preset import Preset
from trainer.config.recipe import load_run_config
from trainer.errors import MachineError
from trainer.run.build import resolve_here

METHODS = (("lora", ""), ("ia3", "int8"), ("qlora", "nf4"), ("qlora", "fp4"), ("qlora", "int8"))
OPTIMIZERS = (
    "adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion", "lion_8bit", "sgd", "muon",
    "adafactor",
)  # fmt: skip
# name, capability, precisions that run, quantised bases that run
MACHINES = (
    ("cpu", None, {"fp32", "bf16", "fp16"}, {"nf4", "fp4", "int8"}),
    ("P40", (6, 1), {"fp32", "fp16"}, {"nf4", "fp4"}),
    ("V100", (7, 0), {"fp32", "fp16"}, {"nf4", "fp4"}),
    ("T4", (7, 5), {"fp32", "fp16"}, {"nf4", "fp4", "int8"}),
    ("A100", (8, 0), {"fp32", "bf16", "fp16"}, {"nf4", "fp4", "int8"}),
    ("M40", (5, 2), {"fp32", "fp16"}, set()),
)


def test_every_combination_runs_or_is_refused_as_the_rules_say(base: Path):
    recipe, num_refused = load_run_config(base, ["data.packing=false"]), 0
    everything = itertools.product(
        range(4), ("fp32", "bf16", "fp16"), METHODS, OPTIMIZERS, MACHINES, (False, True)
    )
    for stage, precision, how, optimizer, machine, is_offloaded in everything:
        (method, quant_type), (name, capability, precisions, quantised) = how, machine
        config = recipe.changed("engine", precision=precision)
        config = config.changed("optim", optimizer=optimizer)
        config = config.changed("tuning", method=method, quant_type=quant_type or "auto")
        zero = {"stage": stage} | ({"offload_optimizer": {}} if is_offloaded else {})
        preset = Preset(f"gpu_zero{stage}", {"zero_optimization": zero})
        gpu = None if capability is None else Device(name, 16, None, capability)
        stack = [
            stage == 0 and precision != "fp32",
            stage == 3 and method != "lora",
            stage > 0 and optimizer in ("muon", "adafactor"),
            stage == 3 and optimizer not in ("adamw", "sgd", "muon", "adafactor"),
            is_offloaded and optimizer not in ("adamw", "muon", "adafactor"),
        ]
        hardware = [
            precision not in precisions,
            method != "lora" and quant_type not in quantised,
            name == "cpu" and optimizer in ("paged_adamw", "paged_adamw_8bit"),
        ]
        found = [refusals(limits, config, preset, gpu) for limits in (STACK_LIMITS, MACHINE_LIMITS)]
        assert [len(messages) for messages in found] == [sum(stack), sum(hardware)], found
        num_refused += any(stack + hardware)
        for message in found[0] + found[1]:
            assert "; take " in message
            assert "{" not in message
    assert 0 < num_refused < 2 * 4 * 3 * 5 * 9 * 6


@pytest.mark.parametrize(
    ("capability", "overrides", "parts"),
    [
        pytest.param((7, 0), ["engine.precision=bf16"], ("sm70", "fp16"), id="83-bf16-on-v100"),
        pytest.param((7, 5), ["engine.precision=bf16"], ("sm75", "fp16"), id="83-bf16-on-t4"),
        pytest.param(
            (7, 0),
            ["tuning.method=qlora", "tuning.quant_type=int8", "engine.precision=fp32"],
            ("int8", "sm70", "nf4"),
            id="84-int8-on-v100",
        ),
        pytest.param(
            (5, 2),
            ["tuning.method=qlora", "tuning.quant_type=nf4", "engine.precision=fp32"],
            ("nf4", "sm52", "tuning.method=lora"),
            id="84-nf4-on-m40",
        ),
    ],
)
def test_a_gpu_that_cannot_is_a_machine_error(
    capability, overrides, parts, base: Path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = SimpleNamespace(name="a GPU", total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    config = load_run_config(base, [*overrides, "model.attention=sdpa"])
    with pytest.raises(MachineError) as caught:
        resolve_here(config, torch.device("cuda"))
    assert caught.value.exit_code == 5
    assert [part for part in parts if part not in str(caught.value)] == []


def test_114_a_paged_optimizer_needs_a_gpu(base: Path):
    config = load_run_config(base, ["optim.optimizer=paged_adamw_8bit"])
    with pytest.raises(MachineError, match="there is no GPU; take"):
        resolve_here(config, torch.device("cpu"))
