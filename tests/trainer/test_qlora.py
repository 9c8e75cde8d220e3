"""QLoRA on the CPU: the same code as on a GPU."""

import pytest
from rank_pool import run_ranks

from trainer.metrics import read_log

QLORA = ["tuning.method=qlora", "model.gradient_checkpointing=true"]


def run(recipe, folder, *overrides, world_size=1, **options):
    printed = folder.with_suffix(".txt")
    command = [str(recipe), f"run.output_dir={folder}", *overrides]
    codes = run_ranks(command, world_size, printed, **options)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


@pytest.mark.parametrize("quant_type", ["nf4", "fp4", "int8"])
def test_x(quant_type, tiny_recipe, tmp_path):
    print(
        run(tiny_recipe, tmp_path / "run", *QLORA, f"tuning.quant_type={quant_type}", world_size=2)
    )
    print((tmp_path / "run.txt").read_text())


@pytest.mark.parametrize("opt", ["adamw_8bit"])
def test_y(opt, tiny_recipe, tmp_path):
    print(run(tiny_recipe, tmp_path / "run", *QLORA, f"optim.optimizer={opt}", world_size=2))
