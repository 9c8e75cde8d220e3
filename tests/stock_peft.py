"""An adapter of a run in plain peft and transformers, in a process that imports nothing of ours."""

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from stock_pool import run_stock

_HEAD = """
import json, sys
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

tokenizer_file, inputs, *adapters = sys.argv[1:]
for adapter in adapters:
    facts = json.load(open(adapter + "/focaltune.json"))
    base_name = json.load(open(adapter + "/adapter_config.json"))["base_model_name_or_path"]
"""
_SCORES = """
model.config.pad_token_id = 1
tokenizer = Tokenizer.from_file(tokenizer_file)
end = tokenizer.token_to_id(facts["end_token"])
scores = []
for code in json.load(open(inputs)):
    ids = tokenizer.encode(code, add_special_tokens=False).ids[: facts["seq_length"] - 1] + [end]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits
    scores.append(logits.double().softmax(1)[0, 1].item())
print(json.dumps(scores))
"""


def assert_stock_scores_are_the_reports(
    load: str, folders: Sequence[Path], tokenizer_file: Path, codes: Sequence[str], tmp_path: Path
) -> None:
    """Score functions as any user of PEFT would, and compare with the runs' predictions.

    Args:
        load: Source that makes `model` of `base_name` and `adapter`.
        folders: Of the runs.
        tokenizer_file: tokenizer.json.
        codes: Functions of the test split, in its order.
        tmp_path: Where the process runs.
    """
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps(list(codes)))
    source = _HEAD + textwrap.indent(load + _SCORES, " " * 4)
    models = [str(folder / "model") for folder in folders]
    stock = run_stock(
        [sys.executable, "-c", source, str(tokenizer_file), str(inputs), *models], cwd=tmp_path
    )
    assert stock.returncode == 0, stock.stderr[-2000:]
    printed = [line for line in stock.stdout.splitlines() if line.startswith("[")]
    for folder, line in zip(folders, printed, strict=True):
        report = (folder / "report" / "predictions.jsonl").read_text().splitlines()
        ours = [json.loads(line)["score"] for line in report]
        assert max(ours) - min(ours) > 1e-3
        assert json.loads(line) == pytest.approx(ours, abs=1e-6), folder
