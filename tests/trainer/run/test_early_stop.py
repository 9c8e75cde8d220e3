"""A run stops after eval.patience validations without a better one, also when it was cut off."""

import json
import operator
import os
import signal
import time
from types import SimpleNamespace

import pytest
import rank_checks
from conftest import sample_rows, write_rows
from rank_pool import run_ranks, start_ranks, wait_ranks

from data.text.labels import Classes
from launcher.compare import main as compare_main
from launcher.prepare import main as prepare_main
from trainer.config.recipe import load_run_config
from trainer.engine.state import TrainState
from trainer.errors import ConfigError
from trainer.evaluation.best_step import best_value, check_metric, deciding_score
from trainer.evaluation.decision import Decision
from trainer.evaluation.scoring import Validation
from trainer.run.session import Session
from trainer.run_folder.metrics import read_log

STEPS = 16
STILL = ["optim.lr=1e-30"]  # nothing moves: no validation is better than the first
COMMON = [f"optim.max_steps={STEPS}", "save.interval=3", "save.keep=20"]
ROUNDING = 5e-6  # as in test_same_loss.py


def run(recipe, folder, *more, world_size=1, entry=None):
    printed = folder.with_suffix(".txt")
    command = [str(recipe), f"run.output_dir={folder}", *COMMON, *more]
    codes = run_ranks(command, world_size, printed, entry=entry)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    return read_log(folder / "log.jsonl", "valid"), printed.read_text()


def facts_of(folder):
    return json.loads((folder / "report" / "test.json").read_text())["facts"]


def states_of(folder):
    """The counters of every checkpoint, without the time it took."""
    found = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        state = json.loads((path / "trainer.json").read_text())["state"]
        found[path.name] = state | {"train_seconds": 0}
    return found


def session_of(scores, patience, total_steps=100):
    """A session whose validations, ten steps apart, have these scores."""
    config = SimpleNamespace(
        eval=SimpleNamespace(patience=patience, metric="loss"),
        task=SimpleNamespace(name="classification"),
    )
    left = iter(scores)
    return Session(
        SimpleNamespace(config=config, total_steps=total_steps),
        SimpleNamespace(classes=Classes()),
        None, None, {}, TrainState(),
        SimpleNamespace(validate=lambda step: Validation(next(left), Decision(step / 100))),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "patience", "stops_at", "best"),
    [
        # better, the same, better, worse, worse
        ((-0.5, -0.5, -0.4, -0.45, -0.41), 2, 50, 30),
        ((-0.5, -0.5, -0.4, -0.45, -0.39), 2, None, 50),
        ((-0.5, -0.5), 1, 20, 10),
        ((-0.5, -0.6, -0.7, -0.8), None, None, 10),
        ((None, None, None, None), 1, None, 40),  # undefined: it decides nothing
    ],
)
def test_validations_are_counted_since_the_best_one(scores, patience, stops_at, best):
    session = session_of(scores, patience)
    found = None
    for number in range(1, len(scores) + 1):
        session.state.step = 10 * number
        session.validate()
        if session.early_stop and found is None:
            found = session.state.step
    assert found == stops_at
    assert (session.state.best_step, session.state.threshold) == (best, best / 100)
    if stops_at:
        shown = -scores[best // 10 - 1]
        assert session.early_stop == (
            f"stopped early after step {stops_at} of 100: in {patience} validations loss was never"
            f" better than {shown:.4f}, at step {best} (eval.patience)"
        )
    assert not session_of(scores, patience, total_steps=0).early_stop


def test_counters_of_a_version_without_patience_are_read():
    older = TrainState(step=3, best_step=2).to_json()
    del older["num_worse"]
    assert TrainState.of(older) == TrainState(step=3, best_step=2, num_worse=0)


def test_a_metric_is_one_that_the_task_measures_and_has_a_direction(base, tiny_recipe, capsys):
    three = Classes(("a", "b", "c"))
    for metric, task, classes in (
        ("pr_auc", "classification", Classes()),
        ("macro_f1", "classification", three),
        ("macro_f1", "classification", None),  # before the data say how many classes there are
        ("loss", "classification", three),
        ("token_accuracy", "instruction", None),
        ("auto", "causal_lm", Classes()),
    ):
        check_metric(metric, task, classes)
    for metric, task, classes, said in (
        ("rocauc", "classification", None, "did you mean 'roc_auc'?; allowed: ['auto', "),
        ("makro_f1", "classification", three, "did you mean 'macro_f1'?; allowed: ['auto', "),
        ("f1", "classification", three, "validation; allowed: ['auto', 'class_accuracy', "),
        ("roc_auc", "instruction", None, "'loss', 'perplexity', 'token_accuracy']"),
    ):
        with pytest.raises(ConfigError) as refused:
            check_metric(metric, task, classes)
        assert said in str(refused.value)
    values = {"brier": 0.2, "f1": 0.7, "loss": 0.3}
    assert deciding_score("functions", values, "brier") == -0.2
    assert deciding_score("functions", values, "f1") == 0.7
    assert deciding_score("classes", values, "loss") == -0.3
    assert best_value("functions", -0.2, "brier") == {"valid_brier": 0.2}
    assert prepare_main([str(tiny_recipe), "eval.metric=rocauc"]) == 2
    assert "did you mean 'roc_auc'?" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"eval.patience 2 counts validations"):
        load_run_config(base, ["eval.patience=2", "eval.interval=never"])


def test_the_validation_loss_is_that_of_training_on_any_ranks(tiny_recipe, tmp_path):
    rows = sample_rows("train", 16, longest=500)
    for number, row in enumerate(rows):
        row["status"] = f"s{number % 3}"
    path = write_rows(tmp_path / "train.jsonl", rows)
    same = [
        *STILL, f"data.train={path}", f"data.valid={path}", "data.allow_leaks=true",
        "optim.global_batch_size=16", "optim.max_steps=2", "eval.interval=1", "loss.alpha=null",
        "loss.class_weights=balanced", "loss.group_weights={s1: 3.0}", "data.seq_length=96",
        "data.long_functions=window", "optim.warmup_steps=0",
    ]  # fmt: skip
    found = {}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        valid, _ = run(tiny_recipe, folder, *same, world_size=world_size)
        trained = [row["loss"] for row in read_log(folder / "log.jsonl")]
        found[world_size] = [row["loss"] for row in valid]
        assert found[world_size] == pytest.approx(trained, rel=ROUNDING)
        assert len(trained) == 2
    assert found[2] == pytest.approx(found[1], rel=ROUNDING)


def test_a_run_stops_where_a_plain_count_over_its_validations_does(tiny_recipe, tmp_path):
    whole, _ = run(tiny_recipe, tmp_path / "whole", "eval.interval=1")
    assert "stopped_early" not in facts_of(tmp_path / "whole")
    ends = set()
    for metric, is_better in (("loss", operator.lt), ("f1", operator.gt)):
        best = whole[0]
        for row in whole:
            if is_better(row[metric], best[metric]):
                best = row
            if row["step"] - best["step"] == 2:
                break
        end = row["step"]
        assert end < STEPS
        ends.add(end)
        folder = tmp_path / metric
        patient = ["eval.interval=1", f"eval.metric={metric}", "eval.patience=2"]
        stopped, printed = run(tiny_recipe, folder, *patient)
        assert stopped == whole[:end]
        facts = facts_of(folder)
        assert (facts["best_step"], facts["steps"]) == (best["step"], end)
        said = f"stopped early after step {end} of {STEPS}: in 2 validations {metric} was never"
        assert facts["stopped_early"].startswith(said)
        assert said in printed
        assert said.partition(":")[0] in (folder / "report" / "test.md").read_text()
        saved = json.loads((folder / "model" / "focaltune.json").read_text())
        assert saved[f"valid_{metric}"] == best[metric]
    assert len(ends) == 2
    folders = [str(tmp_path / name) for name in ("whole", "loss", "f1")]
    assert compare_main([*folders, "--out", str(tmp_path / "compared")]) == 0
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert compared["settings"] == {
        "eval.metric": ["auto", "loss", "f1"], "eval.patience": [None, 2, 2],
    }  # fmt: skip
    assert (
        compared["groups"][1]["runs"][0]["stopped_early"]
        == facts_of(folder.parent / "loss")["stopped_early"]
    )
    assert list(compared["not_compared"]) == ["intervals of precision, recall, accuracy"]


def test_a_run_that_is_killed_keeps_its_count(tiny_recipe, tmp_path):
    patient = [*STILL, "eval.interval=2", "eval.patience=4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    valid, _ = run(tiny_recipe, whole, *patient, world_size=2)
    assert [row["step"] for row in valid] == [2, 4, 6, 8, 10]  # the first, then four no better
    command = [str(tiny_recipe), f"run.output_dir={parts}", *COMMON, *patient]
    ranks = start_ranks(command, 2, tmp_path / "killed.txt")
    log, deadline = parts / "log.jsonl", time.monotonic() + 120
    while not log.exists() or log.read_text().count('"kind": "valid"') < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    wait_ranks(ranks)
    again, _ = run(tiny_recipe, parts, *patient, world_size=2)
    assert again == valid
    assert states_of(parts) == states_of(whole)
    assert states_of(whole)["step-00000010"]["num_worse"] == 4
    assert facts_of(parts) == facts_of(whole)
    before = log.read_bytes()
    _, printed = run(tiny_recipe, parts, *patient, world_size=2)  # it only reports again
    assert log.read_bytes() == before
    assert "nothing is left to train; raise eval.patience" in printed
    longer, _ = run(tiny_recipe, parts, *patient, "eval.patience=5", world_size=2)
    assert [row["step"] for row in longer] == [2, 4, 6, 8, 10, 12]


def test_another_metric_begins_to_look_for_the_best_step_anew(tiny_recipe, tmp_path):
    folder = tmp_path / "run"
    still = [*STILL, "eval.interval=2"]
    run(tiny_recipe, folder, *still, "optim.max_steps=4")
    command = [str(tiny_recipe), f"run.output_dir={folder}", *COMMON, *still, "optim.max_steps=8"]
    printed = tmp_path / "refused.txt"
    assert run_ranks([*command, "eval.metric=loss"], 1, printed) == [2]
    assert "eval.metric: auto -> loss" in printed.read_text()
    run(tiny_recipe, folder, *command[4 + len(still) - 1 :], "eval.metric=loss",
        "run.accept_changes=true")  # fmt: skip
    state = states_of(folder)["step-00000008"]
    assert (state["best_step"], state["num_worse"]) == (6, 1)
    assert state["best_score"] < 0


def test_the_last_validation_is_not_repeated_where_the_best_step_is_the_last(tiny_recipe, tmp_path):
    valid, printed = run(
        tiny_recipe, tmp_path / "run", "optim.max_steps=4", "eval.interval=never",
        entry=rank_checks.count_scored_batches,
    )  # fmt: skip
    assert [row["step"] for row in valid] == [4]
    assert facts_of(tmp_path / "run")["best_step"] == 4
    assert "scored valid 1 test 1" in printed
