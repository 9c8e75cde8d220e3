"""A model whose records need rows of their own trains alike with any ranks, ZeRO stage and batch.

Bloom's position biases cannot be packed. The reference for the loss is transformers' own forward.
"""

import json

import pytest
from rank_pool import run_ranks

from trainer.run_folder.metrics import read_log

ROUNDING = 5e-6  # as in test_same_loss.py
BLOOM = {
    "model_type": "bloom", "vocab_size": 2048, "hidden_size": 32, "n_layer": 2, "n_head": 4,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
CASES = {
    "two ranks": (2, []),
    "zero2, two ranks": (2, ["engine.preset=cpu_zero2"]),
    "zero3": (1, ["engine.preset=cpu_zero3"]),
    "zero3, two ranks": (2, ["engine.preset=cpu_zero3"]),
    "zero3, two ranks, checkpointing": (
        2, ["engine.preset=cpu_zero3", "model.gradient_checkpointing=true"],
    ),
    "4 x 1 instead of 1 x 4": (1, ["optim.micro_batch_size=4"]),
}  # fmt: skip


def curve(recipe, folder, config, world_size=1, overrides=()):
    printed = folder.with_suffix(".txt")
    arguments = [str(recipe), f"run.output_dir={folder}", f"model.config={config}"]
    arguments += ["data.tokenizer=data/samples/model", *overrides]
    codes = run_ranks(arguments, world_size, printed)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    assert "records    rows (sdpa)" in printed.read_text() or "rows (eager)" in printed.read_text()
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("bloom") / "config.json"
    path.write_text(json.dumps(BLOOM))
    return path


@pytest.fixture(scope="module")
def reference(tiny_recipe, config, tmp_path_factory):
    losses = curve(tiny_recipe, tmp_path_factory.mktemp("reference") / "run", config)
    assert len(losses) == 8
    assert max(losses) > 1.2 * min(losses)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_of_padded_rows_equal_the_reference(case, reference, tiny_recipe, config, tmp_path):
    world_size, overrides = CASES[case]
    losses = curve(tiny_recipe, tmp_path / "run", config, world_size, overrides)
    assert losses == pytest.approx(reference, rel=ROUNDING)
