"""What DeepSpeed is told, and what each rank then holds."""

import pytest
import rank_checks
from cut_runs import cut_back
from rank_pool import run_ranks

from trainer.config.preset import load_preset
from trainer.config.recipe import load_run_config
from trainer.engine.engine import deepspeed_config
from trainer.run_folder.metrics import read_log

ROUNDING = 5e-6  # sums in another order


@pytest.mark.parametrize("preset", ["cpu_zero1", "cpu_zero2", "cpu_zero3"])
def test_a_rank_holds_one_nth_of_the_optimizer_state(preset, tiny_recipe, tmp_path):
    """Two moments of 2,752 trained parameters: 5,504 elements, shared out.

    ZeRO pads each parameter (stage 3) or the flat buffer (stages 1 and 2) to a multiple of the
    world size, so a rank can hold a few elements more.
    """
    for world_size in (1, 4):
        folder = tmp_path / str(world_size)
        command = [
            str(tiny_recipe), f"run.output_dir={folder}", f"engine.preset={preset}",
            "optim.max_steps=2", "eval.interval=never",
        ]  # fmt: skip
        codes = run_ranks(
            command, world_size, folder.with_suffix(".txt"), entry=rank_checks.count_optimizer_state
        )
        assert codes == [0] * world_size, folder.with_suffix(".txt").read_text()[-2000:]
        for rank in range(world_size):
            held = int((folder / f"state-{rank}.txt").read_text())
            assert 5504 / world_size <= held <= 5504 / world_size + 64


def test_the_timeout_reaches_every_group(tmp_path):
    printed = tmp_path / "printed"
    codes = run_ranks(["77"], 2, printed, entry=rank_checks.report_group_timeout)
    assert codes == [0, 0], printed.read_text()
    assert printed.read_text().count("timeout 77.0") == 4


def test_the_run_owns_every_number_of_the_engine(tiny_recipe):
    config = load_run_config(tiny_recipe, ["optim.micro_batch_size=3", "optim.max_grad_norm=0.5"])
    config = config.changed("engine", preset="cpu_zero2", precision="bf16")
    settings = deepspeed_config(config)
    assert settings["train_micro_batch_size_per_gpu"] == 3
    assert settings["gradient_clipping"] == 0.0  # engine/finite.py clips
    for other in ({"preset": "cpu_zero3"}, {"precision": "fp16"}, {"preset": "gpu_zero2_offload"}):
        assert deepspeed_config(config.changed("engine", **other))["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert settings["zero_optimization"] == load_preset("cpu_zero2").zero
    assert "fp16" not in settings
    for num_trained in (193, 194):  # DeepSpeed ends with an assertion where a bucket is odd
        zero = deepspeed_config(config, num_trained)["zero_optimization"]
        assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (194, 194)


@pytest.mark.parametrize(
    ("optimizer", "preset"),
    [
        ("lion", "cpu_zero2"), ("sgd", "cpu_zero3"), ("muon", "cpu_zero0"),
        ("adafactor", "cpu_zero0"),
    ],
)  # fmt: skip
def test_the_state_of_any_optimizer_continues_on_any_number_of_ranks(
    optimizer, preset, tiny_recipe, tmp_path
):
    def losses(name, world_size, steps, preset):
        folder = tmp_path / name
        command = [
            str(tiny_recipe), f"run.output_dir={folder}", f"optim.optimizer={optimizer}",
            f"engine.preset={preset}", f"optim.max_steps={steps}", "optim.schedule=constant",
            "run.accept_changes=true", "eval.interval=never", "optim.lr=3e-3",
            "save.interval=3",
        ]  # fmt: skip
        printed = folder.with_suffix(".txt")
        codes = run_ranks(command, world_size, printed)
        assert codes == [0] * world_size, printed.read_text()[-3000:]
        return [row["loss"] for row in read_log(folder / "log.jsonl")]

    whole = losses("whole", 2, 6, preset)
    assert len(set(whole)) == 6
    assert losses("alone", 1, 6, "cpu_zero0") == pytest.approx(whole, rel=ROUNDING)
    for name in ("parts", "moved"):
        cut_back(tmp_path / "whole", tmp_path / name, 3)
    assert losses("parts", 2, 6, preset) == whole  # bitwise
    assert losses("moved", 1, 6, "cpu_zero0") == pytest.approx(whole, rel=ROUNDING)
