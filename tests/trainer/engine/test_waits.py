"""No step waits for the device where nothing is logged; who reads a tensor, and why that is right.

On a CPU nothing waits, but the same calls read values. Where a rank's tensor lies on the host on a
GPU too, or is read a step later, the place is named here with its reason.
"""

import json
from collections import Counter

import pytest
import rank_checks
from rank_pool import run_ranks

from trainer.run_folder.metrics import read_log

KNOWN = {
    # FiniteCheck: the copy of the step before, made behind it, on the host (engine/finite.py).
    "engine/finite.py:read tolist",
    # torch's AdamW counts its steps in tensors on the host.
    "zero/stage_1_and_2.py:_optimizer_step _local_scalar_dense",
    "zero/stage3.py:step_with_gradscaler _local_scalar_dense",
    # Ranks compare requests to stop over the host, by gloo.
    "processes/stopping.py:agreed _local_scalar_dense",
}
# DeepSpeed leaves out an update whose norm is not finite: it reads the norm, one wait a step, in
# fp32 and under ZeRO 3. In bf16 under ZeRO 1 and 2 nothing waits.
BY_NORM = "runtime/utils.py:is_invalid_grad_norm _local_scalar_dense"


def waits(recipe, folder, world_size, *keys):
    printed = folder / "printed"
    command = [
        str(recipe), f"run.output_dir={folder / 'run'}", "eval.interval=never", "eval.before=none",
        "save.interval=100", "log.interval=100", *keys,
    ]  # fmt: skip
    codes = run_ranks(command, world_size, printed, entry=rank_checks.count_waits)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    lines = [line.split(maxsplit=2) for line in printed.read_text().splitlines()]
    found = Counter[str]()
    for line in lines:
        if line and line[0] == "wait":
            found[line[2]] += int(line[1])
    return found


@pytest.mark.parametrize(
    ("stage", "precision", "world_size"),
    [(1, "bf16", 1), (2, "bf16", 2), (2, "fp32", 1), (3, "bf16", 1)],
)
def test_no_step_waits_for_the_device(stage, precision, world_size, tiny_recipe, tmp_path):
    keys = [f"engine.preset=cpu_zero{stage}", f"engine.precision={precision}"]
    found = waits(tiny_recipe, tmp_path, world_size, *keys)
    reads = found.pop(BY_NORM, 0)
    assert reads == (world_size if stage == 3 or precision == "fp32" else 0)
    assert found.keys() <= KNOWN
    assert found["engine/finite.py:read tolist"] == world_size  # the counter sees what is read


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize(
    ("stage", "precision", "world_size"), [(1, "fp32", 2), (1, "bf16", 1), (2, "bf16", 2)]
)
def test_our_clipping_is_deepspeeds_to_the_last_bit(
    optimizer, stage, precision, world_size, tiny_recipe, tmp_path
):
    """Some steps are clipped, some are not, some have parameters in two groups."""
    curves = []
    for name, entry in (("ours", None), ("theirs", rank_checks.clip_by_deepspeed)):
        folder, printed = tmp_path / name, tmp_path / f"{name}.txt"
        command = [
            str(tiny_recipe), f"run.output_dir={folder}", f"engine.preset=cpu_zero{stage}",
            f"engine.precision={precision}", f"optim.optimizer={optimizer}",
            "eval.interval=never", "eval.before=none",
        ]  # fmt: skip
        codes = run_ranks(command, world_size, printed, entry=entry)
        assert codes == [0] * world_size, printed.read_text()[-3000:]
        settings = json.loads((folder / "ds_config.json").read_text())
        assert settings["gradient_clipping"] == (1.0 if entry else 0.0)
        rows = read_log(folder / "log.jsonl")
        curves.append([(row["loss"], row["grad_norm"]) for row in rows])
    ours, theirs = curves
    assert ours == theirs
    assert max(norm for _, norm in ours) > 1 > min(norm for _, norm in ours)
    assert len({loss for loss, _ in ours}) == 8
