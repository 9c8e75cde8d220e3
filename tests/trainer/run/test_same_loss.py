"""The loss does not depend on ranks, ZeRO stage, accumulation, packing or attention back end.

Sums in another order differ by rounding: 5e-6 relative is 40 units in the last place of fp32 after
eight updates; a mean of means, the error this guards against, is off by more than 1e-2 here.
"""

import json
from itertools import pairwise

import pytest
from rank_pool import run_ranks

from trainer.run_folder.metrics import read_log

ROUNDING = 5e-6
CASES = {
    "two ranks": (2, []),
    "zero0, two ranks": (2, ["engine.preset=cpu_zero0"]),
    "zero2": (1, ["engine.preset=cpu_zero2"]),
    "zero2, two ranks": (2, ["engine.preset=cpu_zero2"]),
    "zero3": (1, ["engine.preset=cpu_zero3"]),
    "zero3, two ranks": (2, ["engine.preset=cpu_zero3"]),
    "4 x 1 instead of 1 x 4": (1, ["optim.micro_batch_size=4"]),
    "eager": (1, ["model.attention=eager"]),
    "sdpa with a mask": (1, ["model.attention=sdpa"]),
    "gradient checkpointing": (2, ["model.gradient_checkpointing=true"]),
    "PEFT's adapters": (1, ["tuning.lora_backend=peft"]),
}
# One step an epoch: packed or not, a step then holds the same functions.
FULL_BATCH = ["optim.global_batch_size=40"]
FULL_BATCH_CASES = {
    "packed, two ranks": (2, []),
    "one function a row": (1, ["data.packing=false"]),
    "one function a row, micro-batch 7": (1, ["data.packing=false", "optim.micro_batch_size=7"]),
    "one function a row, three ranks": (3, ["data.packing=false", "optim.micro_batch_size=6"]),
}


def curve(recipe, folder, world_size=1, overrides=(), **options):
    """Loss and gradient norm of every step of a run."""
    printed = folder.with_suffix(".txt")
    arguments = [str(recipe), f"run.output_dir={folder}", *overrides]
    codes = run_ranks(arguments, world_size, printed, **options)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    rows = read_log(folder / "log.jsonl")
    return [row["loss"] for row in rows], [row["grad_norm"] for row in rows]


@pytest.fixture(scope="module")
def reference(tiny_recipe, tmp_path_factory):
    """One rank, ZeRO 1, rows one after the other."""
    folder = tmp_path_factory.mktemp("reference")
    losses, norms = curve(tiny_recipe, folder / "run", 1, ["engine.preset=cpu_zero1"])
    assert len(losses) == 8
    assert max(losses) > 2 * min(losses)  # a run that does not move would prove nothing
    return losses, norms


@pytest.fixture(scope="module")
def full_batch_reference(tiny_recipe, tmp_path_factory):
    return curve(tiny_recipe, tmp_path_factory.mktemp("full") / "run", overrides=FULL_BATCH)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_norms_equal_the_reference(case, reference, tiny_recipe, tmp_path):
    world_size, overrides = CASES[case]
    losses, norms = curve(tiny_recipe, tmp_path / "run", world_size, overrides)
    assert losses == pytest.approx(reference[0], rel=ROUNDING)
    if "zero0" not in case:  # DeepSpeed reports no norm there
        assert norms == pytest.approx(reference[1], rel=ROUNDING)


def test_an_automatic_micro_batch_has_the_losses_of_single_rows_and_is_kept(
    reference, tiny_recipe, tmp_path
):
    """All rows of a step at once, in fp32 to 1e-6; continued bit by bit, with dropout."""
    auto = ["engine.preset=cpu_zero1", "optim.micro_batch_size=auto"]
    losses, norms = curve(tiny_recipe, tmp_path / "run", 1, auto)
    assert losses == pytest.approx(reference[0], rel=1e-6)
    assert norms == pytest.approx(reference[1], rel=ROUNDING)
    steps = json.loads((tmp_path / "run" / "plan.json").read_text())["steps"]
    assert (steps["micro_batch_size"], steps["gradient_accumulation_steps"]) == (12, 1)
    assert "micro_batch_size: auto" in (tmp_path / "run" / "config.yaml").read_text()
    drops = [*auto, "tuning.lora_dropout=0.2", "optim.schedule=constant"]
    whole, _ = curve(tiny_recipe, tmp_path / "whole", 1, drops)
    curve(tiny_recipe, tmp_path / "parts", 1, [*drops, "optim.max_steps=4"])
    more = [*drops, "run.accept_changes=true"]
    parts, _ = curve(tiny_recipe, tmp_path / "parts", 1, more)
    assert parts == whole
    printed = (tmp_path / "parts.txt").read_text()
    assert "micro 12 (auto: the most that fits half of the host)" in printed
    assert "micro 12 (auto, as since its start)" in printed


@pytest.mark.parametrize("keys", [[], ["tuning.method=full", "optim.max_grad_norm=0.5"]])
def test_one_rank_without_zero_equals_zero_2_to_the_last_digit(keys, tiny_recipe, tmp_path):
    """With accumulation, weight decay and steps that are clipped; on one rank in fp32."""
    bare, sharded = (
        curve(tiny_recipe, tmp_path / preset, 1, [*keys, f"engine.preset={preset}"])
        for preset in ("cpu_zero0", "cpu_zero2")
    )
    assert bare == sharded
    assert max(bare[1]) > 1.0 > min(bare[1]) or keys  # some steps are clipped, some are not


@pytest.mark.parametrize("case", FULL_BATCH_CASES)
def test_packing_does_not_change_the_loss(case, full_batch_reference, tiny_recipe, tmp_path):
    world_size, overrides = FULL_BATCH_CASES[case]
    losses, _ = curve(tiny_recipe, tmp_path / "run", world_size, [*FULL_BATCH, *overrides])
    assert losses == pytest.approx(full_batch_reference[0], rel=ROUNDING)


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [
        (["engine.precision=bf16"], 5e-2),  # 8 bits of mantissa: 2^-8 = 4e-3 a value
        (["engine.precision=fp32", "model.dtype=bf16"], 5e-2),
    ],
)
def test_half_precision_follows_fp32(precision, allowed, reference, tiny_recipe, tmp_path):
    losses, _ = curve(tiny_recipe, tmp_path / "run", overrides=precision)
    assert losses == pytest.approx(reference[0], rel=allowed)
    assert losses != reference[0]


def test_fp16_overflow_skips_the_update_and_uses_up_no_schedule(tiny_recipe, tmp_path):
    # Weights of 60: the first gradients times the first loss scale of 2^16 leave fp16's range.
    overrides = ["engine.precision=fp16", "optim.max_steps=12", "loss.alpha=[60.0, 60.0]"]
    losses, _ = curve(tiny_recipe, tmp_path / "run", 2, overrides, allow_fp16=True)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert len(losses) == 12
    assert 0 < rows[-1]["skipped_steps"] < 12
    for row, after in pairwise(rows):
        begun = row["step"] - row["skipped_steps"]
        assert begun == (after["step"] - 1) - row["skipped_steps"]
        if after["skipped_steps"] == row["skipped_steps"] and row["skipped_steps"] == row["step"]:
            assert after["lr"] == row["lr"]  # the first update takes the first rate


def test_a_rate_of_its_own_reaches_the_groups_of_zero(tiny_recipe, tmp_path, reference):
    more = ["optim.lora_plus_ratio=4"]
    alone, _ = curve(tiny_recipe, tmp_path / "alone", 1, ["engine.preset=cpu_zero0", *more])
    sharded, _ = curve(tiny_recipe, tmp_path / "sharded", 2, ["engine.preset=cpu_zero2", *more])
    assert sharded == pytest.approx(alone, rel=ROUNDING)
    assert alone[1] != pytest.approx(reference[0][1], rel=1e-3)
