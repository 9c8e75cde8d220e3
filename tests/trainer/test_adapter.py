"""The adapter of a run loads in plain peft and transformers, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
from rank_pool import run_ranks

from data.tokenization import normalize_whitespace

# Nothing of ours is imported: what any user of PEFT would write.
STOCK = """
import json, sys
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

adapter, tokenizer_file, inputs = sys.argv[1:]
facts = json.load(open(adapter + "/focaltune.json"))
base_name = json.load(open(adapter + "/adapter_config.json"))["base_model_name_or_path"]
base = AutoModelForSequenceClassification.from_pretrained(base_name, num_labels=2)
model = PeftModel.from_pretrained(base, adapter).eval()
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
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps([normalize_whitespace(row["code"], "none") for row in rows]))
    arguments = [str(folder / "adapter"), str(tiny_model / "tokenizer.json"), str(inputs)]
    stock = subprocess.run(
        [sys.executable, "-c", STOCK, *arguments],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert stock.returncode == 0, stock.stderr[-2000:]
    theirs = json.loads(stock.stdout.splitlines()[-1])
    report = (folder / "report" / "predictions.jsonl").read_text().splitlines()
    ours = [json.loads(line)["score"] for line in report]
    assert max(ours) - min(ours) > 1e-3
    assert theirs == pytest.approx(ours, abs=1e-6)
