"""Encoders and encoder-decoders train alike under any ranks and ZeRO stage, and score as in stock.

Their own forward passes compute the logits, of padded rows; all of the head is trained.
"""

import json

import pytest
from rank_pool import run_ranks
from stock_peft import assert_stock_scores_are_the_reports

from trainer.run_folder.metrics import read_log

pytestmark = pytest.mark.slow
ROUNDING = 5e-6  # as in test_same_loss.py
IDS = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS = {
    "bert": IDS | {
        "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 1024, "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    },
    "t5": IDS | {
        "model_type": "t5", "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4,
        "dropout_rate": 0.0, "decoder_start_token_id": 1, "is_encoder_decoder": True,
    },
}  # fmt: skip
CASES = {
    "alone": (1, []),
    "zero3, two ranks": (2, ["engine.preset=cpu_zero3", "optim.micro_batch_size=2"]),
}
LOAD = """
base = AutoModelForSequenceClassification.from_pretrained(base_name, num_labels=2)
model = PeftModel.from_pretrained(base, adapter).eval()
"""


@pytest.fixture(scope="module")
def runs(tiny_recipe, tiny_model, tmp_path_factory):
    """Kind -> the folders of its runs."""
    root, folders = tmp_path_factory.mktemp("encoders"), {}
    for kind, values in CONFIGS.items():
        config = root / f"{kind}.json"
        config.write_text(json.dumps(values))
        folders[kind] = [root / f"{kind} {case}" for case in CASES]
        for folder, (world_size, overrides) in zip(folders[kind], CASES.values(), strict=True):
            printed = folder.with_suffix(".txt")
            arguments = [str(tiny_recipe), f"run.output_dir={folder}", f"model.config={config}"]
            arguments += [f"data.tokenizer={tiny_model}", "data.normalize_whitespace=none"]
            codes = run_ranks([*arguments, *overrides], world_size, printed)
            assert codes == [0] * world_size, printed.read_text()
            assert "records    rows (" in printed.read_text()
    return folders


@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_are_the_same_everywhere(kind, runs):
    losses = [[row["loss"] for row in read_log(folder / "log.jsonl")] for folder in runs[kind]]
    assert max(losses[0]) > 1.1 * min(losses[0])
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], rel=ROUNDING)


def test_stock_gives_the_scores_of_every_run(runs, tiny_data, tiny_model, tmp_path):
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    folders = [folder for each in runs.values() for folder in each]
    assert len(folders) == len(CONFIGS) * len(CASES)
    assert_stock_scores_are_the_reports(
        LOAD, folders, tiny_model / "tokenizer.json", [row["code"] for row in rows], tmp_path
    )
