"""fp16 as V100 and T4 need it, its arithmetic emulated on the CPU by the program itself."""

import math

import pytest
import torch
from rank_pool import run_ranks
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.engine.engine import refuse_16_bit_masters
from trainer.errors import ConfigError
from trainer.run_folder.metrics import read_log

SMALLEST = 2.0**-24  # positive fp16; half of it rounds to 0
FP16 = ["engine.precision=fp16", "optim.schedule=constant", "optim.warmup_steps=0"]


def run(recipe, folder, *overrides):
    printed = folder.with_suffix(".txt")
    command = [str(recipe), f"run.output_dir={folder}", *overrides]
    assert run_ranks(command, 1, printed, allow_fp16=True) == [0], printed.read_text()[-3000:]
    return read_log(folder / "log.jsonl")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_gradients_that_fp16_would_lose_keep_their_norm(method, tiny_recipe, tmp_path):
    """The scalar loss is scaled in fp32, before its gradient becomes fp16 in the head's product."""
    tiny = [f"tuning.method={method}", "loss.alpha=[5e-9, 5e-9]", "optim.max_steps=1",
            "optim.warmup_steps=0"]  # fmt: skip
    [exact] = run(tiny_recipe, tmp_path / "fp32", *tiny, "engine.precision=fp32")
    [ours] = run(tiny_recipe, tmp_path / "fp16", *tiny, *FP16)
    assert 0 < exact["grad_norm"] < SMALLEST  # so that unscaled nothing, or next to it, is left
    assert ours["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.02)  # 11 bits a value
    assert ours["loss_scale"] == 2.0**16


def test_updates_below_fp16s_resolution_add_up_in_the_masters(tiny_recipe, tmp_path):
    """A step of 1e-7 on weights of 0.1, where fp16 counts in 6e-5."""
    folder = tmp_path / "run"
    run(tiny_recipe, folder, *FP16, "optim.lr=1e-7", "optim.weight_decay=0.0", "save.interval=1",
        "save.keep=8", "optim.max_grad_norm=0")  # fmt: skip
    states = [
        load_file(folder / "checkpoints" / f"step-{step:08d}" / "state.safetensors")
        for step in (1, 8)
    ]
    names = [name for name in states[0] if "lora_A" in name and "/" not in name]
    first, last = (torch.cat([state[name].flatten() for name in names]) for state in states)
    large = first.abs() > 0.05
    moved = (last - first).abs()[large]
    assert large.sum() > 100
    assert moved.median() > 1e-7  # seven steps of Adam, of 1e-7 each where signs agree
    assert moved.max() < 8e-7
    assert (first.half() == last.half())[large].float().mean() > 0.9


def test_overflows_and_the_loss_scale_are_scalars_of_tensorboard(tiny_recipe, tmp_path):
    rows = run(
        tiny_recipe,
        tmp_path / "run",
        *FP16,
        "loss.alpha=[60.0, 60.0]",
        "log.trackers=[tensorboard]",
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    skipped = [event.value for event in events.Scalars("train/skipped_steps")]
    scales = [event.value for event in events.Scalars("train/loss_scale")]
    assert skipped == [row["skipped_steps"] for row in rows]
    assert skipped[-1] > 0
    assert min(scales) < 2**16
    assert all(math.log2(scale).is_integer() for scale in scales)


def test_a_checkpoint_before_the_first_update_continues_bit_by_bit(tiny_recipe, tmp_path):
    """Its optimizer has no state yet."""
    overflowing = [*FP16, "loss.alpha=[5.0, 5.0]", "run.accept_changes=true", "save.interval=1"]
    whole = run(tiny_recipe, tmp_path / "whole", *overflowing)
    assert whole[0]["skipped_steps"] == 1
    assert whole[-1]["skipped_steps"] < 8
    run(tiny_recipe, tmp_path / "parts", *overflowing, "optim.max_steps=1")
    state = load_file(tmp_path / "parts" / "checkpoints" / "step-00000001" / "state.safetensors")
    assert not [name for name in state if "/" in name]
    parts = run(tiny_recipe, tmp_path / "parts", *overflowing)
    assert [row["loss"] for row in parts] == [row["loss"] for row in whole]


def test_masters_of_16_bit_are_refused():
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float16))
    with pytest.raises(ConfigError, match="fp32 masters"):
        refuse_16_bit_masters(torch.optim.SGD([weight], lr=1.0).param_groups)
    refuse_16_bit_masters(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))]).param_groups)
