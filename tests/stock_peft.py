"""An adapter of a run in plain peft and transformers, in a process that imports nothing of ours."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_HEAD = """
import json, sys
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

adapter, tokenizer_file, inputs = sys.argv[1:]
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
    load: str, folder: Path, tokenizer_file: Path, codes: Sequence[str], tmp_path: Path
) -> None:
    """Score functions as any user of PEFT would, and compare with a run's predictions.

    Args:
        load: Source that makes `model` of `base_name` and `adapter`.
        folder: Of the run.
        tokenizer_file: tokenizer.json.
        codes: Functions of the test split, in its order.
        tmp_path: Where the process runs.
    """
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps(list(codes)))
    stock = subprocess.run(
        [sys.executable, "-c", _HEAD + load + _SCORES, str(folder / "adapter"),
         str(tokenizer_file), str(inputs)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert stock.returncode == 0, stock.stderr[-2000:]
    theirs = json.loads(stock.stdout.splitlines()[-1])
    report = (folder / "report" / "predictions.jsonl").read_text().splitlines()
    ours = [json.loads(line)["score"] for line in report]
    assert max(ours) - min(ours) > 1e-3
    assert theirs == pytest.approx(ours, abs=1e-6)
