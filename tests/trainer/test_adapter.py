"""The adapter of a run loads in plain peft and transformers, in a process of its own."""

import json

import pytest
from rank_pool import run_ranks
from stock_peft import assert_stock_scores_are_the_reports

from data.tokenization import normalize_whitespace

LOAD = """
base = AutoModelForSequenceClassification.from_pretrained(base_name, num_labels=2)
model = PeftModel.from_pretrained(base, adapter).eval()
"""


@pytest.mark.parametrize(
    ("preset", "backend"), [("cpu_zero1", "fused"), ("cpu_zero1", "peft"), ("cpu_zero3", "fused")]
)
def test_stock_peft_gives_the_scores_of_the_report(
    preset, backend, tiny_recipe, tiny_data, tiny_model, tmp_path
):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = [
        str(tiny_recipe), f"run.output_dir={folder}", f"engine.preset={preset}",
        f"tuning.lora_backend={backend}",
    ]  # fmt: skip
    assert run_ranks(command, 2, printed) == [0, 0], printed.read_text()[-3000:]
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    codes = [normalize_whitespace(row["code"], "none") for row in rows]
    assert_stock_scores_are_the_reports(
        LOAD, folder, tiny_model / "tokenizer.json", codes, tmp_path
    )
