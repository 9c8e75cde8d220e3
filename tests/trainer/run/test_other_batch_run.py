"""A run that goes on with another batch size, from the recipe to the log."""

import json

import pytest
import rank_checks
from rank_pool import run_ranks

from trainer.run_folder.metrics import read_log

SETTINGS = [
    "data.packing=false", "optim.schedule=linear", "optim.warmup_steps=0", "optim.lr=0.008",
    "optim.micro_batch_size=2", "eval.interval=never", "log.trackers=[]", "log.interval=1",
    "run.accept_changes=true",
]  # fmt: skip


@pytest.mark.slow
def test_the_rest_of_the_epochs_is_trained_with_its_rates_and_then_nothing(tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed.txt"
    parts = [  # of 40 functions; 3 steps of 8, then another size on other ranks
        (1, ["optim.max_steps=3", "optim.epochs=null", "optim.global_batch_size=8"]),
        (2, ["optim.max_steps=null", "optim.epochs=2", "optim.global_batch_size=12"]),
        (1, ["optim.max_steps=null", "optim.epochs=1", "optim.global_batch_size=12"]),
    ]
    said = []
    for world_size, part in parts:
        command = [str(tiny_recipe), f"run.output_dir={folder}", *SETTINGS, *part]
        codes = run_ranks(command, world_size, printed, entry=rank_checks.record_rows_and_state)
        assert codes == [0] * world_size, printed.read_text()[-3000:]
        said.append(" ".join(printed.read_text().split()))
    assert "continues in epoch 1 after 24 of 40 examples; 6 steps are left" in said[1]
    assert (
        "nothing is left to train: the checkpoint has 9 steps, 2 epochs, and the recipe" in said[2]
    )
    by_step = {}
    for line in (folder / "rows.txt").read_text().splitlines():
        step, rank, examples = json.loads(line)  # the estimate reads a step before it is trained
        by_step[step, rank] = examples
    assert len({step for step, _ in by_step}) == 9
    for epoch in (range(5), range(5, 9)):
        read = [one for (step, _), rows in by_step.items() if step in epoch for one in rows]
        assert sorted(read) == list(range(40))
    # 12 a step make 4 steps an epoch, 8 in all; the last 6 of these are left
    logged = [(row["step"], row["epoch"], row["lr"]) for row in read_log(folder / "log.jsonl")][3:]
    assert [step for step, _, _ in logged] == [4, 5, 6, 7, 8, 9]
    assert [epoch for _, epoch, _ in logged] == pytest.approx([0.8, 1, 1.25, 1.5, 1.75, 2])
    assert [lr for _, _, lr in logged] == pytest.approx([0.006, 0.005, 0.004, 0.003, 0.002, 0.001])
