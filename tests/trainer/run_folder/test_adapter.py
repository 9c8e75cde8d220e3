"""The adapter of a run loads in plain peft and transformers, in a process of its own."""

import json

from rank_pool import run_ranks
from stock_peft import assert_stock_scores_are_the_reports

from data.text.tokenization import normalize_whitespace

LOAD = """
base = AutoModelForSequenceClassification.from_pretrained(base_name, num_labels=2)
model = PeftModel.from_pretrained(base, adapter).eval()
"""


def test_stock_peft_gives_the_scores_of_the_report(tiny_recipe, tiny_data, tiny_model, tmp_path):
    printed, folders = tmp_path / "printed", []
    for preset, backend in (("cpu_zero1", "fused"), ("cpu_zero1", "peft"), ("cpu_zero3", "fused")):
        folders.append(tmp_path / f"{preset}-{backend}")
        command = [
            str(tiny_recipe), f"run.output_dir={folders[-1]}", f"engine.preset={preset}",
            f"tuning.lora_backend={backend}",
        ]  # fmt: skip
        assert run_ranks(command, 2, printed) == [0, 0], printed.read_text()[-3000:]
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    codes = [normalize_whitespace(row["code"], "none") for row in rows]
    assert_stock_scores_are_the_reports(
        LOAD, folders, tiny_model / "tokenizer.json", codes, tmp_path
    )
