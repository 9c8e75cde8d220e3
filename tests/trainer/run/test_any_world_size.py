"""A checkpoint knows neither ranks nor ZeRO stages: any of them continues what any other wrote.

State, rows and losses go through every number of ranks and every stage in one chain, in which each
of them reads and writes; as nothing of the writer stands in a checkpoint, each link proves its
writer and its reader for all others.
"""

import itertools
import json
from collections import defaultdict

import pytest
import rank_checks
from cut_runs import cut_back
from rank_pool import run_ranks

from trainer.run_folder.metrics import read_log

CHAIN = [(3, 3), (1, 0), (8, 3), (4, 2), (2, 1), (3, 0)]
STEPS = 2 * len(CHAIN)
ROUNDING = 5e-6  # fp32: sums over ranks in another order
# Without dropout, whose numbers follow the ranks; unpacked, so that eight ranks all have rows.
SETTINGS = [
    "data.packing=false", "tuning.lora_dropout=0.0", "optim.schedule=constant",
    "eval.interval=never", "save.interval=1000", "log.trackers=[]", "run.accept_changes=true",
]  # fmt: skip


def train(recipe, folder, world_size, stage, steps, *more):
    printed = folder.with_suffix(".txt")
    command = [
        str(recipe), f"run.output_dir={folder}", *SETTINGS, f"engine.preset=cpu_zero{stage}",
        f"optim.max_steps={steps}", *more,
    ]  # fmt: skip
    codes = run_ranks(command, world_size, printed, entry=rank_checks.record_rows_and_state)
    assert codes == [0] * world_size, printed.read_text()[-3000:]


def losses(folder):
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def rows(folder):
    """Step -> examples of every rank, and how many ranks had any."""
    by_rank = {}
    for line in (folder / "rows.txt").read_text().splitlines():
        step, rank, examples = json.loads(line)
        assert by_rank.setdefault((step, rank), examples) == examples  # read again: the same
    by_step = defaultdict(list)
    for (step, _), examples in sorted(by_rank.items()):
        by_step[step].append(examples)
    return by_step


@pytest.mark.timeout(900)
def test_95_any_ranks_and_stages_continue_any_others(tiny_recipe, tmp_path):
    for which in (0, 1):
        writers, readers = ({link[which] for link in part} for part in (CHAIN[:-1], CHAIN[1:]))
        assert writers == readers == [{1, 2, 3, 4, 8}, {0, 1, 2, 3}][which]
    chain, alone = tmp_path / "chain", tmp_path / "alone"
    for link, (world_size, stage) in enumerate(CHAIN, start=1):
        train(tiny_recipe, chain, world_size, stage, 2 * link)
    train(tiny_recipe, alone, 1, 1, STEPS)
    restored = (chain / "state.txt").read_text().split()
    assert restored == [restored[0]] * (len(CHAIN) - 1)  # the number of tensors, each time
    assert int(restored[0]) > 10
    ours, whole = rows(chain), rows(alone)
    assert len(ours) == len(whole) == STEPS
    for step in range(STEPS):
        [examples] = whole[step]
        assert sorted(itertools.chain(*ours[step])) == sorted(examples)
    most = max(range(len(CHAIN)), key=lambda link: CHAIN[link])
    assert sum(map(bool, ours[2 * most])) == 8  # every one of eight ranks had a row
    for epoch in range(STEPS // 4):
        read = [one for step in range(4 * epoch, 4 * epoch + 4) for one in whole[step][0]]
        assert sorted(read) == list(range(40))  # each function once an epoch
    assert len(set(losses(alone))) == STEPS
    assert losses(chain) == pytest.approx(losses(alone), rel=ROUNDING)


def test_three_ranks_continue_to_the_last_bit(tiny_recipe, tmp_path):
    """Each with a third of every weight; two of stage 2 are in trainer/tuning/test_runs.py."""
    whole = tmp_path / "whole"
    train(tiny_recipe, whole, 3, 3, 6, "save.interval=3")
    parts = cut_back(whole, tmp_path / "parts", 3)
    train(tiny_recipe, parts, 3, 3, 6)
    assert len(set(losses(whole))) == 6
    assert losses(parts) == losses(whole)
