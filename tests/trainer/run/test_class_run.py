"""Many classes, and several at once, train alike everywhere and score as in stock."""

import csv
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_rows
from cut_runs import cut_back
from rank_pool import run_ranks
from safetensors.torch import load_file

from trainer.run.commands import evaluate_model, export_trained
from trainer.run_folder.metrics import read_log
from trainer.sweep.grid import expand
from trainer.sweep.sweep import run_sweep

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("stock_pool")]
ROUNDING = 5e-6  # as in test_same_loss.py
CALLS = {"CWE-120": "strcpy(a, b);", "CWE-416": "free(a); use(a);", "safe": "return a;"}
NAMES = ("safe", "CWE-120", "CWE-416")
COMMON = (
    "loss.alpha=null", "data.labels=auto", "eval.interval=never", "optim.schedule=constant",
    "optim.warmup_steps=0", "save.interval=100", "log.trackers=[]",
)  # fmt: skip
LONG = ["optim.max_steps=30"]
CASES = {
    "packed": (1, ["optim.max_steps=8", "save.interval=4"]),
    "two ranks, ZeRO 2": (2, ["optim.max_steps=8", "engine.preset=cpu_zero2"]),
    "two ranks, ZeRO 3": (2, ["optim.max_steps=8", "engine.preset=cpu_zero3"]),
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
    resumed = cut_back(tmp_path / "0", tmp_path / "resumed", 4)
    assert train([*command, *CASES["packed"][1]], resumed) == losses[0]  # bitwise


def test_a_trained_run_beats_chance_and_stock_transformers_give_its_scores(
    task, tmp_path, tiny_model, capsys
):
    from tokenizers import Tokenizer
    from transformers import AutoModelForSequenceClassification, pipeline

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
    facts = json.loads((tmp_path / "run" / "model" / "focaltune.json").read_text())
    assert (facts["classes"], facts["problem_type"]) == (names, problem)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    adapter = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    assert plan["num_trained"] == sum(weight.numel() for weight in adapter.values())
    assert plan["data"]["num_classes"] == len(names)

    evaluate_model(tmp_path / "run", [tmp_path / "test.jsonl"], "again", robustness=True)
    robust = json.loads((tmp_path / "run" / "report" / "again_robustness.json").read_text())
    assert robust["score"] == {"many": "P(not safe)", "several": "highest score of a class"}[kind]
    changed = robust["transformations"]["names"]
    assert changed["num"] == 24  # each has a variable
    assert changed["auc_before"] is not None
    assert 0 < changed["largest_shift"] < 1
    again = json.loads((tmp_path / "run" / "report" / "again.json").read_text())
    assert again["predictors"] == report["predictors"]
    export_trained(tmp_path / "run", tmp_path / "merged", merge=True, onto="full")
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
    classify = pipeline(
        "text-classification", model=str(tmp_path / "merged"), batch_size=4, top_k=None
    )
    for each, line in zip(classify(codes), map(json.loads, lines), strict=True):
        found = {one["label"]: one["score"] for one in each}
        assert np.allclose([found[name] for name in names], line["scores"], atol=1e-5)


def test_a_sweep_compares_by_the_measures_of_its_classes(task, tmp_path, capsys):
    _, (recipe, *settings) = task
    keys = (*settings, "optim.max_steps=4", f"run.output_dir={tmp_path / 'grid'}")
    root, cells = expand(Path(recipe), keys, ("lora", "ia3"))
    for cell in cells:
        cell.config.output_dir.parent.mkdir(parents=True)
        train([recipe, *cell.overrides], cell.config.output_dir)
    run_sweep(root, cells, None, None)
    page = (root / "report" / "report.md").read_text()
    assert "| Mean AP | Macro F1 |" in page
    assert "ROC AUC" not in page
    assert "2 cells are finished, 0 are not" in page
    with (root / "report" / "report.csv").open() as file:
        found = {row["method"]: row for row in csv.DictReader(file)}
    for cell in cells:
        report = json.loads((cell.config.output_dir / "report" / "test.json").read_text())
        values = report["predictors"]["model"]["metrics"]
        row = found[cell.method]
        assert (float(row["metric"]), float(row["macro_f1"])) == (
            values["mean_ap"], values["macro_f1"],
        )  # fmt: skip


def test_a_head_is_continued_for_its_own_classes_alone(task, tmp_path):
    kind, command = task
    train([*command, "optim.max_steps=2"], tmp_path / "first")
    again = [*command, "optim.max_steps=2", f"tuning.init_from={tmp_path / 'first'}"]
    train(again, tmp_path / "again")
    for split in ("train", "valid", "test"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text(path.read_text().replace("CWE-416", "CWE-401"))
    printed = tmp_path / "other.txt"
    assert run_ranks([*again, f"run.output_dir={tmp_path / 'other'}"], 1, printed) == [4]
    first = "'CWE-120', 'CWE-416'] (multi" if kind == "several" else "'safe', 'CWE-120', 'CWE-416'"
    message = printed.read_text()
    assert f"tells apart [{first}" in message
    assert "this data" in message
    assert "'CWE-401'" in message.split("this data")[1]
    named = "CWE-120: CWE-120, CWE-401: CWE-416" + (", safe: safe" * (kind == "many"))
    order = f"{{{'safe: safe, ' if kind == 'many' else ''}{named.removesuffix(', safe: safe')}}}"
    train([*again, f"data.labels={order}"], tmp_path / "mapped")


def test_a_quantised_base_learns_many_classes(task, tmp_path):
    kind, command = task
    command = [*command, *LONG, "tuning.method=qlora", "tuning.lora_r=8"]
    losses = train(command, tmp_path / "run")
    assert losses[-1] < 0.8 * losses[0]
    report = json.loads((tmp_path / "run" / "report" / "test.json").read_text())
    values = {name: one["metrics"] for name, one in report["predictors"].items()}
    assert values["model"]["mean_ap"] > values["prior"]["mean_ap"] + 0.15
    adapter = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    [head] = [weight for name, weight in adapter.items() if "score" in name]
    assert len(head) == len(NAMES) - (kind == "several")
    if kind == "several":  # one of the two is enough
        return
    command = [*command, "optim.max_steps=4", "optim.global_batch_size=48"]
    losses = [train(command, tmp_path / str(num), num) for num in (1, 2)]
    assert losses[1] == pytest.approx(losses[0], rel=ROUNDING)
