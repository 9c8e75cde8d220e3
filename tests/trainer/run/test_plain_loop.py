"""A run has the losses and gradient norms of a plain loop: stock models, a record at a time.

All that the loop takes from the run is which records a step holds; tests/data/batches proves those.
"""

import json
import math

import pytest
import rank_checks
import torch
import yaml
from peft import PeftModel
from rank_pool import run_ranks
from test_golden import FAMILY, GOLDEN, STEPS, golden_recipe
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from trainer.run_folder.metrics import read_log

LR, WARM_UP, WEIGHT_DECAY, MAX_NORM, SEQ_LENGTH = 1e-2, 2, 0.01, 1.0, 384
TASK = "Below is an instruction that describes a task"  # tatsu-lab/stanford_alpaca, train.py
CONTEXT = ", paired with an input that provides further context"
ANSWER = ". Write a response that appropriately completes the request."
ALPHA, GAMMA = (0.4, 0.6), 2.0
# fp32 sums in another order over eight updates: 3.5e-6 at most here; a wrong divisor, decay or rate
# is off by more than 1e-3.
ROUNDING = 5e-5


def plain_loop(model, examples, steps, loss_of):
    """Loss and norm of every step; examples are (ids, targets), steps lists of their indices."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999), eps=1e-8,
    )  # fmt: skip
    losses, norms = [], []
    for number, step in enumerate(steps):
        for group in optimizer.param_groups:
            progress = (number - WARM_UP) / (STEPS - WARM_UP)
            falling = LR * (1 + math.cos(math.pi * progress)) / 2
            group["lr"] = LR * (number + 1) / WARM_UP if number < WARM_UP else falling
        optimizer.zero_grad()
        count = sum(len(examples[at][1]) for at in step)
        loss = 0.0
        for at in step:
            ids, targets = examples[at]
            logits = model(input_ids=torch.tensor([ids])).logits.flatten(0, -2)
            one = loss_of(logits, torch.tensor(targets)) / count
            one.backward()
            loss += one.item()
        losses.append(loss)
        norms.append(torch.nn.utils.clip_grad_norm_(trained, MAX_NORM).item())
        optimizer.step()
    return losses, norms


def focal_loss(logits, targets):
    p = logits.softmax(1)[0, targets[0]]
    return -ALPHA[targets[0]] * (1 - p) ** GAMMA * p.log()


def answer_loss(logits, targets):
    predicting = logits[-len(targets) - 1 : -1]  # the token before each target
    return torch.nn.functional.cross_entropy(predicting, targets, reduction="sum")


def functions(tokenizer, end):
    rows = map(json.loads, (GOLDEN / "train.jsonl").read_text().splitlines())
    return [([*tokenizer(row["code"]), end], [row["target"]]) for row in rows]


def answers(tokenizer, end):
    examples = []
    for row in map(json.loads, (GOLDEN / "questions_train.jsonl").read_text().splitlines()):
        context, given = (CONTEXT, f"\n\n### Input:\n{row['input']}") if row["input"] else ("", "")
        prompt = f"{TASK}{context}{ANSWER}\n\n### Instruction:\n{row['instruction']}{given}"
        ids = tokenizer(f"{prompt}\n\n### Response:")
        if answer := [*tokenizer(row["output"]), end][: max(0, SEQ_LENGTH - len(ids))]:
            examples.append((ids + answer, answer))
    return examples


def trained(name, folder, *overrides):
    """Losses, norms and the records of every step of a run."""
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(golden_recipe(name, folder.parent)))
    command = [str(recipe), f"run.output_dir={folder}", f"optim.max_grad_norm={MAX_NORM}"]
    command += ["optim.micro_batch_size=4"]
    printed = folder.with_suffix(".txt")
    entry = rank_checks.record_rows_and_state
    assert run_ranks([*command, *overrides], 1, printed, entry=entry) == [0], printed.read_text()
    log = read_log(folder / "log.jsonl")
    lines = map(json.loads, (folder / "rows.txt").read_text().splitlines())
    steps = {number: list(dict.fromkeys(read)) for number, _, read in lines}  # one a target
    return [row["loss"] for row in log], [row["grad_norm"] for row in log], list(steps.values())


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ["classification", "instruction"])
def test_a_run_is_a_plain_loop_over_its_records(name, method, tmp_path):
    tuning = [f"tuning.method={method}"]
    if method == "lora":
        tuning += ["tuning.lora_r=4", "tuning.lora_dropout=0"]
    *ours, steps = trained(name, tmp_path / "run", *tuning)
    kinds = {
        "classification": (AutoModelForSequenceClassification, functions, focal_loss),
        "instruction": (AutoModelForCausalLM, answers, answer_loss),
    }
    load, examples_of, loss_of = kinds[name]
    model = load.from_pretrained(tmp_path / "run" / "base", attn_implementation="eager")
    if method == "lora":  # its first weights: those of a run that does not move
        trained(name, tmp_path / "still", *tuning, "optim.lr=1e-30", "optim.max_steps=2")
        adapter = tmp_path / "still" / "model"
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    tokenizer = Tokenizer.from_file(str(GOLDEN / "tokenizer.json"))
    examples = examples_of(lambda text: tokenizer.encode(text).ids, 0)
    theirs = plain_loop(model, examples, steps, loss_of)
    assert len(steps) == STEPS
    for step in steps:
        assert sum(len(examples[at][0]) for at in step) > 4 * SEQ_LENGTH  # two micro-batches
    assert sorted(steps[0] + steps[1] + steps[2]) == list(range(len(examples)))  # an epoch
    assert min(theirs[1]) < MAX_NORM < max(theirs[1])  # clipped, and not
    assert len(set(theirs[0])) == STEPS
    for found, expected in zip(ours, theirs, strict=True):
        assert found == pytest.approx(expected, rel=ROUNDING)
    assert FAMILY[name] == model.config.model_type


def test_batches_of_the_next_step_are_made_before_this_one_is_waited_for(tiny_recipe, tmp_path):
    """Steps of an epoch in a chain; 40 functions in dozens: an epoch has 4 steps."""
    printed = tmp_path / "printed"
    command = [str(tiny_recipe), f"run.output_dir={tmp_path / 'run'}", "eval.interval=never"]
    command += ["eval.before=none", "save.interval=100"]
    assert run_ranks(command, 1, printed, entry=rank_checks.record_order) == [0]
    [line] = [one for one in printed.read_text().splitlines() if one.startswith("order")]
    epoch = "bs" + "brs" * 3 + "r"
    assert line.split()[1].lstrip("b") == (epoch * 2)[1:]
