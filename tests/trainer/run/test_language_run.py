"""A language run from files to report: equal on any ranks, resumed inside a file, its end learned.

Sums in another order differ by rounding: 5e-6 relative is 40 units in the last place of fp32.
"""

import json
import os
import shutil
import signal
import time
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest
import rank_checks
import yaml
from conftest import write_rows
from rank_pool import Entry, run_ranks, start_ranks, wait_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.compare import main as compare_main
from launcher.evaluate import main as evaluate_main
from launcher.export import main as export_main
from trainer.run_folder.metrics import read_log

pytestmark = pytest.mark.usefixtures("stock_pool")
ROUNDING = 5e-6
STEPS = 12
FULL_BATCH = ["optim.global_batch_size=1000", "optim.max_steps=6"]  # a step is an epoch
CASES = {
    "two ranks": (2, []),
    "ZeRO 2 on two ranks": (2, ["engine.preset=cpu_zero2"]),
    "micro-batches of 3": (1, ["optim.micro_batch_size=3"]),
    "one example a row": (1, ["data.packing=false"]),
    "one example a row on three ranks": (3, ["data.packing=false", "optim.micro_batch_size=4"]),
    "whole logits": (1, ["loss.backend=reference"]),
}


def conversations(count: int, first: int = 0) -> list[dict[str, object]]:
    return [
        {"prompt": f"sum {n} and {n + 1}?", "completion": f"it is {2 * n + 1}" + "." * (n % 5)}
        for n in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model) -> Path:
    """Question and answer; tests give run.output_dir."""
    folder = tmp_path_factory.mktemp("language")
    train = write_rows(folder / "train.jsonl", conversations(60))
    test = write_rows(folder / "test.jsonl", conversations(24, first=100))
    values = {
        "run": {"output_dir": str(folder / "run"), "seed": 3},
        "model": {"config": str(tiny_model)},
        "task": {"name": "instruction"},
        "data": {"train": str(train), "test": str(test), "seq_length": 128},
        "tuning": {"method": "full"},
        "optim": {
            "lr": 1e-2, "warmup_steps": 2, "max_steps": STEPS, "global_batch_size": 12,
            "weight_decay": 0.01,
        },
        "eval": {"interval": 6},
        "log": {"interval": 1, "progress": False, "trackers": []},
        "save": {"interval": 2},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Three files of texts, some longer than a row."""
    folder = tmp_path_factory.mktemp("corpus")
    for file in range(3):
        rows = [{"text": f"file {file} text {n}. " + f"{n} and " * (3 * n)} for n in range(30)]
        (folder / f"part{file}.json").write_text(json.dumps(rows))
    return folder


def run(
    recipe: Path,
    folder: Path,
    world_size: int = 1,
    *overrides: str,
    draws: bool = False,
    entry: Entry | None = None,
) -> list[dict]:
    """The logged steps of a run that must end well."""
    printed = folder.with_suffix(".txt")
    command = [str(recipe), f"run.output_dir={folder}", *overrides]
    codes = run_ranks(command, world_size, printed, draws=draws, entry=entry)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    return read_log(folder / "log.jsonl")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """A run of one rank."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    counting = rank_checks.count_scored_batches
    rows = run(recipe, folder, 1, "log.trackers=[tensorboard]", draws=True, entry=counting)
    assert len(rows) == STEPS
    return folder


@pytest.fixture(scope="module")
def full_batch(recipe, tmp_path_factory) -> list[dict]:
    rows = run(recipe, tmp_path_factory.mktemp("full") / "run", 1, *FULL_BATCH)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]  # a run that does not move proves nothing
    return rows


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_one_packed_rank(name, recipe, full_batch, tmp_path):
    world_size, overrides = CASES[name]
    rows = run(recipe, tmp_path / "run", world_size, *FULL_BATCH, *overrides)
    for key in ("loss", "grad_norm"):
        expected = [row[key] for row in full_batch]
        assert [row[key] for row in rows] == pytest.approx(expected, rel=ROUNDING)
    valid = read_log(tmp_path / "run" / "log.jsonl", "valid")
    assert [row["step"] for row in valid] == [0, 6]


def test_validation_report_and_tensorboard_say_what_was_learned(whole):
    valid = read_log(whole / "log.jsonl", "valid")
    assert [row["step"] for row in valid] == [0, 6, 12]
    assert valid[-1]["loss"] < valid[0]["loss"]
    samples = read_log(whole / "log.jsonl", "sample")
    assert {row["step"] for row in samples} == {6, 12}
    assert all(row["prompt"].startswith("Question: sum") for row in samples)
    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    tags = events.Tags()
    assert {"valid/loss", "valid/perplexity", "valid/token_accuracy"} <= set(tags["scalars"])
    assert "samples/1/text_summary" in tags["tensors"]
    report = json.loads((whole / "report" / "test.json").read_text())
    predictors = report["predictors"]
    assert predictors["model"]["loss"] < predictors["before training"]["loss"]
    assert report["comparison"]["verdict"].startswith("better than before")
    assert report["population"]["num_targets"] > 10
    page = (whole / "report" / "test.md").read_text()
    assert "unigram of train" in page
    assert (whole / "report" / "test_loss.svg").read_bytes().startswith(b"<svg ")


def test_the_best_step_is_that_of_the_lowest_validation_loss(whole):
    valid = {row["step"]: row["loss"] for row in read_log(whole / "log.jsonl", "valid")}
    trainer = json.loads((whole / "checkpoints" / "step-00000012" / "trainer.json").read_text())
    best = min((step for step in valid if step), key=lambda step: valid[step])
    assert trainer["state"]["best_step"] == best
    assert trainer["state"]["best_score"] == -valid[best]
    # The splits before training, at steps 6 and 12, and at the end test alone: where the best step
    # is the last, its answers are those of the report.
    assert best == STEPS
    assert "scored valid 3 test 2 answers 2" in whole.with_suffix(".txt").read_text()


def test_a_run_is_evaluated_on_another_file_and_merged(recipe, whole, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    other = write_rows(tmp_path / "other.jsonl", conversations(9))
    assert evaluate_main([str(whole), str(other)]) == 0, capsys.readouterr().err
    assert "before training" not in capsys.readouterr().out  # of another file it is not known
    assert evaluate_main([str(whole), str(other), "--robustness"]) == 2
    assert "--robustness changes functions, but" in capsys.readouterr().err
    report = json.loads((whole / "report" / "other.json").read_text())
    assert report["population"]["num_records"] == 9
    folder = tmp_path / "lora" / "run"
    folder.parent.mkdir()
    run(recipe, folder, 1, "tuning.method=lora", "tuning.lora_r=4", "optim.max_steps=3")
    assert compare_main([str(whole), str(folder), "--out", str(tmp_path / "compared")]) == 0
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert {"tuning.method", "optim.max_steps"} <= compared["settings"].keys()
    [difference] = compared["differences"]
    losses_of = [
        json.loads((path / "report" / "test.json").read_text())["predictors"]["model"]["loss"]
        for path in (whole, folder)
    ]
    gain = difference["measures"]["loss"]["difference"]
    assert gain == pytest.approx(losses_of[1] - losses_of[0], abs=1e-12)
    assert export_main([str(folder), str(folder / "merged"), "--merge"]) == 0, (
        capsys.readouterr().err
    )
    assert (
        AutoModelForCausalLM.from_pretrained(folder / "merged").config.model_type == "gpt_bigcode"
    )


def test_a_folder_or_a_glob_is_evaluated_as_its_files_would_be_alone(whole, tmp_path, capsys):
    """Three files of three kinds, two of them of one name."""
    kinds = {
        "a/x.jsonl": conversations(9, first=200),
        "b/x.jsonl": [{"instruction": f"count to {n}", "output": "1 2 3"} for n in range(7)],
        "y.jsonl": [{"text": f"a text about {n}"} for n in range(5)],
    }
    folder = tmp_path / "other"

    def report(path: Path, name: str) -> dict:
        assert evaluate_main([str(whole), str(path), "--name", name]) == 0, capsys.readouterr().err
        return json.loads((whole / "report" / f"{name}.json").read_text())

    alone = []
    for number, (name, rows) in enumerate(kinds.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        alone.append(report(write_rows(folder / name, rows), f"alone{number}"))
    expected = [
        (row["population"]["num_targets"], pytest.approx(row["predictors"]["model"]["loss"]))
        for row in alone
    ]
    for path in (folder, folder / "**" / "*.jsonl"):
        rows = report(path, "together")["by_file"]
        assert [row["file"] for row in rows] == ["a/x.jsonl", "b/x.jsonl", "y.jsonl"]
        assert [(row["num_targets"], row["loss"]) for row in rows] == expected
    assert "b/x.jsonl" in (whole / "report" / "together.md").read_text()
    assert evaluate_main([str(whole), str(folder / "*.csv"), "--name", "none"]) == 3
    assert "*.csv matches no file" in capsys.readouterr().err


def test_ranks_with_different_numbers_of_chunks_score_together_under_zero_3(
    recipe, full_batch, tmp_path
):
    """Three of some 60 examples in validation: one rank has two rows, the other one."""
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = [str(recipe), f"run.output_dir={folder}", *FULL_BATCH, "engine.preset=cpu_zero3"]
    codes = run_ranks(
        [*command, "data.packing=false"], 2, printed, entry=rank_checks.train_in_small_chunks
    )
    assert codes == [0, 0], printed.read_text()[-3000:]
    rows = read_log(folder / "log.jsonl")
    for key in ("loss", "grad_norm"):
        expected = [row[key] for row in full_batch]
        assert [row[key] for row in rows] == pytest.approx(expected, rel=ROUNDING)


def test_a_prompt_that_cannot_be_asked_is_refused_before_the_model_loads(recipe, tmp_path):
    printed = tmp_path / "printed"
    command = [str(recipe), f"run.output_dir={tmp_path / 'run'}", "data.template=plain"]
    assert run_ranks([*command, 'eval.prompts=["sum 1?", ""]'], 1, printed) == [2]
    assert "eval.prompts: '' is 0 tokens" in printed.read_text()
    long = "word " * 200
    assert run_ranks([*command, f'eval.prompts=["{long}"]'], 1, printed) == [2]
    assert "fewer than data.seq_length, 128" in printed.read_text()


def sequential(recipe: Path, corpus: Path, folder: Path) -> list[str]:
    return [
        str(recipe), f"run.output_dir={folder}", "task.name=causal_lm", f"data.train={corpus}",
        "data.test=null", "data.order=sequential", "tuning.method=lora",
        "tuning.lora_dropout=0.2", "optim.max_steps=16", "save.interval=1",
        "log.trackers=[tensorboard]",
    ]  # fmt: skip


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_killed_inside_a_file_continues_bitwise(world_size, recipe, corpus, tmp_path):
    names = ("whole", "killed")
    (whole, killed), printed = (tmp_path / name for name in names), tmp_path / "printed"
    codes = run_ranks(sequential(recipe, corpus, whole), world_size, printed)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    command = sequential(recipe, corpus, killed)
    ranks = start_ranks(command, world_size, printed)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "step-00000006").exists():
        assert time.monotonic() < deadline
        assert any(rank.is_alive() for rank in ranks), printed.read_text()[-2000:]
        time.sleep(0.005)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    wait_ranks(ranks)
    assert len(losses(killed)) < 16
    assert run_ranks(command, world_size, printed) == [0] * world_size
    assert losses(killed) == losses(whole)
    assert len(set(losses(whole))) == 16
    for kind in ("valid", "train_file", "sample"):
        rows = read_log(whole / "log.jsonl", kind)
        assert rows
        assert read_log(killed / "log.jsonl", kind) == rows


@pytest.mark.parametrize("task", ["instruction", "causal_lm"])
def test_another_batch_on_other_ranks_trains_exactly_the_epochs(task, recipe, corpus, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    text = [f"data.train={corpus}", "data.test=null", "data.order=sequential"]
    settings = [f"task.name={task}", *(text if task == "causal_lm" else [])]
    settings += ["eval.interval=never", "log.trackers=[]", "run.accept_changes=true"]
    parts = [
        (1, ["optim.max_steps=4", "optim.global_batch_size=8"]),
        (2, ["optim.max_steps=null", "optim.epochs=2", "optim.global_batch_size=20"]),
    ]
    for world_size, part in parts:
        command = [str(recipe), f"run.output_dir={folder}", *settings, *part]
        codes = run_ranks(command, world_size, printed, entry=rank_checks.record_rows_and_state)
        assert codes == [0] * world_size, printed.read_text()[-3000:]
    assert "accepted change optim.global_batch_size: 8 -> 20" in printed.read_text()
    rows = map(json.loads, (folder / "rows.txt").read_text().splitlines())
    # the estimate reads a step before it is trained; an example comes once for every target
    by_step = {(step, rank): [one for one, _ in groupby(read)] for step, rank, read in rows}
    times = Counter(one for read in by_step.values() for one in read)
    facts = json.loads((folder / "data.json").read_text())["splits"]["train"]["tokens"]
    assert times == dict.fromkeys(range(facts["num_examples"]), 2)
    assert {rank for _, rank in by_step} == {0, 1}


def test_the_state_says_which_files_are_done_and_each_has_its_loss(recipe, corpus, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = [*sequential(recipe, corpus, folder), "save.keep=100", "tuning.lora_dropout=0.0"]
    assert run_ranks(command, 1, printed) == [0], printed.read_text()[-3000:]
    names = [f"part{file}.json" for file in range(3)]
    steps = sorted((folder / "checkpoints").glob("step-*"))
    states = [json.loads((step / "trainer.json").read_text())["files"] for step in steps]
    epoch = next(n for n, state in enumerate(states) if state["current"][-1] == names[-1])
    for state in states[: epoch + 1]:
        assert state["done"] + state["current"] == names[: len(state["done"] + state["current"])]
    rows = read_log(folder / "log.jsonl", "train_file")
    by_step = {row["step"]: row["loss"] for row in read_log(folder / "log.jsonl")}
    assert {name for row in rows for name in row["losses"]} == set(names)
    assert all(list(row["losses"].values()) == [by_step[row["step"]]] for row in rows)
    assert "files one after the other" in printed.read_text()
    tags = EventAccumulator(str(folder / "tensorboard")).Reload().Tags()["scalars"]
    assert {f"train_file/{name}" for name in names} <= set(tags)
    assert "tokens are fewer than 20 x" in printed.read_text()
    report = json.loads((folder / "report" / "test.json").read_text())
    assert {row["file"] for row in report["by_file"]} <= set(names)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.alpha=[0.5,0.5]"], "task.name instruction does not read it"),
        (["data.isolate=false", "data.packing=false"], "data.isolate=false"),
        (["task.name=classification", "data.order=sequential"], "classification does not read it"),
    ],
)
def test_what_a_task_does_not_read_is_refused(overrides, message, recipe, tmp_path):
    printed = tmp_path / "printed"
    command = [str(recipe), f"run.output_dir={tmp_path / 'run'}", *overrides]
    assert run_ranks(command, 1, printed) == [2]
    assert message in printed.read_text()


def test_plain_concatenation_is_stated_and_has_the_same_targets(recipe, corpus, tmp_path):
    command = ["task.name=causal_lm", f"data.train={corpus}", "data.test=null"]
    command += ["data.isolate=false", "optim.max_steps=2"]
    rows = run(recipe, tmp_path / "run", 2, *command)
    assert len(rows) == 2
    printed = (tmp_path / "run.txt").read_text()
    assert "isolation  off" in printed
    assert "max |diff| to stock" in printed
    assert "neighbours" not in printed
    facts = json.loads((tmp_path / "run" / "data.json").read_text())["splits"]["train"]["tokens"]
    assert facts["policy"] == "window"  # long texts are cut, not cut off
    assert facts["num_examples"] > facts["num_records"]


def test_a_run_whose_data_are_gone_is_evaluated_without_the_unigram(whole, tmp_path, capsys):
    moved = tmp_path / "run"
    shutil.copytree(whole, moved)
    recipe = yaml.safe_load((moved / "config.yaml").read_text())
    recipe["data"] |= {"path": None, "train": "/nowhere/train.jsonl", "valid": None, "test": None}
    (moved / "config.yaml").write_text(yaml.safe_dump(recipe))
    other = write_rows(tmp_path / "other.jsonl", conversations(9))
    reports = []
    for folder in (whole, moved):
        assert evaluate_main([str(folder), str(other)]) == 0, capsys.readouterr().err
        reports.append(json.loads((folder / "report" / "other.json").read_text()))
    there, gone = (report["predictors"] for report in reports)
    assert gone == {name: one for name, one in there.items() if name != "unigram of train"}
    assert "are left out: data.train: /nowhere/train.jsonl" in reports[1]["facts"]["left_out"]
