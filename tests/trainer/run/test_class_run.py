"""Many classes, and several at once, train alike everywhere and score as in stock."""

import hashlib
import json
import random

import numpy as np
import pytest
import torch
from conftest import write_rows
from rank_pool import run_ranks

from trainer.run.commands import evaluate_run, merge_run
from trainer.run_folder.metrics import read_log

pytestmark = pytest.mark.slow
ROUNDING = 5e-6  # as in test_same_loss.py
CALLS = {"CWE-120": "strcpy(a, b);", "CWE-416": "free(a); use(a);", "safe": "return a;"}
NAMES = ("safe", "CWE-120", "CWE-416")
COMMON = (
    "loss.alpha=null", "data.labels=auto", "eval.interval=never", "optim.schedule=constant",
    "optim.warmup_steps=0", "save.interval=100", "log.tensorboard=false",
)  # fmt: skip
LONG = ["optim.max_steps=30"]
CASES = {
    "packed": (1, ["optim.max_steps=8"]),
    "two ranks, ZeRO 2": (2, ["optim.max_steps=8", "engine.preset=cpu_zero2"]),
    "unpacked": (1, ["optim.max_steps=8", "data.packing=false", "optim.micro_batch_size=4"]),
}
TASKS = {
    "many": ["loss.class_weights=balanced", "loss.gamma=1.0"],
    "several": ["loss.alpha=[1.0, 2.0]", "loss.gamma=0.5"],
}


def rows(split, num, kind):
    """Functions whose calls say their classes, in random surroundings."""
    draw = random.Random(f"{split} {kind}")
    found = []
    for number in range(num):
        names = [NAMES[number % 3]] if kind == "many" else [
            name for place, name in enumerate(NAMES[1:]) if number >> place & 1
        ]  # fmt: skip
        filler = "".join(f"int {draw.choice('klmnpq')}{draw.randrange(99)} = {number};\n"
                         for _ in range(draw.randrange(1, 4)))  # fmt: skip
        code = f"int {split}{number}() {{\n{filler}{''.join(CALLS[n] for n in names)}\n}}"
        found.append({"code": code, "target": names[0] if kind == "many" else names})
    return found


@pytest.fixture(params=TASKS)
def task(request, tmp_path, tiny_recipe):
    for split, num in (("train", 48), ("valid", 24), ("test", 24)):
        write_rows(tmp_path / f"{split}.jsonl", rows(split, num, request.param))
    return request.param, [
        str(tiny_recipe),
        f"data.path={tmp_path}",
        *COMMON,
        *TASKS[request.param],
    ]


def train(command, folder, world_size=1):
    printed = folder.with_suffix(".txt")
    codes = run_ranks([*command, f"run.output_dir={folder}"], world_size, printed)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def test_losses_are_the_same_packed_or_not_and_on_any_ranks(task, tmp_path):
    _, command = task
    command = [*command, "optim.global_batch_size=48"]  # or packing decides what a step takes
    losses = [
        train([*command, *more], tmp_path / str(number), world_size)
        for number, (world_size, more) in enumerate(CASES.values())
    ]
    assert max(losses[0]) > 1.1 * min(losses[0])
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], rel=ROUNDING)
    first = train([*command, "optim.max_steps=4"], tmp_path / "resumed")
    train([*command, "optim.max_steps=8", "run.accept_changes=true"], tmp_path / "resumed")
    both = [row["loss"] for row in read_log(tmp_path / "resumed" / "log.jsonl")]
    assert len(both) == 8 > len(first)
    assert both == pytest.approx(losses[0], rel=ROUNDING)


def test_a_trained_run_beats_chance_and_stock_transformers_give_its_scores(
    task, tmp_path, tiny_model, capsys
):
    from tokenizers import Tokenizer
    from transformers import AutoModelForSequenceClassification

    kind, command = task
    train([*command, *LONG], tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report" / "test.json").read_text())
    values = {name: one["metrics"] for name, one in report["predictors"].items()}
    assert values["model"]["mean_ap"] > values["prior"]["mean_ap"] + 0.2
    # Half of the functions have each of several: the prior finds all of them, F1 is 2/3.
    least = 0.2 if kind == "many" else 0.1
    assert values["model"]["macro_f1"] > values["prior"]["macro_f1"] + least
    names = list(NAMES if kind == "many" else NAMES[1:])
    assert [row["class"] for row in report["classes"]] == names
    problem = f"{'single' if kind == 'many' else 'multi'}_label_classification"
    facts = json.loads((tmp_path / "run" / "adapter" / "focaltune.json").read_text())
    assert (facts["classes"], facts["problem_type"]) == (names, problem)

    evaluate_run(tmp_path / "run", [tmp_path / "test.jsonl"], "again", robustness=True)
    robust = json.loads((tmp_path / "run" / "report" / "again_robustness.json").read_text())
    assert robust["score"] == {"many": "P(not safe)", "several": "highest score of a class"}[kind]
    changed = robust["transformations"]["names"]
    assert changed["num"] == 24  # each has a variable
    assert changed["auc_before"] is not None
    assert 0 < changed["largest_shift"] < 1
    again = json.loads((tmp_path / "run" / "report" / "again.json").read_text())
    assert again["predictors"] == report["predictors"]
    merge_run(tmp_path / "run", tmp_path / "merged", "full")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert stock.config.id2label == dict(enumerate(names))
    assert stock.config.problem_type == problem
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    lines = (tmp_path / "run" / "report" / "predictions.jsonl").read_text().splitlines()
    codes = [row["code"] for row in rows("test", 24, kind)]
    for line, code in zip(map(json.loads, lines), codes, strict=True):
        ids = torch.tensor([[*tokenizer.encode(code).ids, stock.config.eos_token_id]])
        mask = torch.ones_like(ids)
        with torch.no_grad():
            logits = stock(input_ids=ids, attention_mask=mask).logits[0].double()
        scores = logits.softmax(0) if kind == "many" else logits.sigmoid()
        assert np.allclose(scores.numpy(), line["scores"], atol=1e-5)
        assert line["digest"] == hashlib.sha256(code.encode()).hexdigest()[:16]
