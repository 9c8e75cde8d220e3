"""A run that is cut off anywhere and started again gives the same numbers as one that is not."""

import functools
import hashlib
import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress

import pytest
import torch
import yaml
from conftest import sample_rows, write_rows
from rank_pool import run_ranks, start_ranks, wait_ranks

from launcher.evaluate import main as evaluate_main
from launcher.export import main as export_main
from trainer.engine.state import TrainState
from trainer.errors import ModelError
from trainer.evaluation.functions.baselines import LEARNED
from trainer.processes.signals import STOP_SIGNALS
from trainer.run_folder.metrics import read_log

pytestmark = pytest.mark.usefixtures("stock_pool")
STEPS = 16
# Dropout is on: equal curves then also prove that its random numbers continue.
OVERRIDES = [
    f"optim.max_steps={STEPS}",
    "tuning.lora_dropout=0.2",
    "save.interval=3",
    "eval.interval=5",
]
KILLED = [  # ranks and stage, each once
    (1, 0), (2, 1), (1, 2), (2, 3), (2, 0), (1, 1), (2, 2), (1, 3),
]  # fmt: skip
ROUNDING = 5e-6
WRITTEN = ("trainer.json", "MANIFEST.json")


def losses(folder):
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def wait_for_line(folder, count, ranks, kind="train"):
    """Until the log holds `count` lines of a kind."""
    path, deadline = folder / "log.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and any(rank.is_alive() for rank in ranks):
        if path.exists() and path.read_text().count(f'"kind": "{kind}"') >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {count} lines in {path}")


def arguments(recipe, folder, *more):
    return [str(recipe), f"run.output_dir={folder}", *OVERRIDES, *more]


@pytest.fixture(scope="module")
def uninterrupted(tiny_recipe, tmp_path_factory):
    """Losses and validations of a whole run by (world size, preset), each run once."""

    @functools.cache
    def whole_run(world_size, preset="cpu_zero1", *more):
        folder = tmp_path_factory.mktemp("whole") / "run"
        command = arguments(tiny_recipe, folder, f"engine.preset={preset}", *more)
        assert set(run_ranks(command, world_size, folder.with_suffix(".txt"))) == {0}
        assert len(set(losses(folder))) == STEPS  # a curve that stands still proves nothing
        return losses(folder), read_log(folder / "log.jsonl", "valid")

    return whole_run


@pytest.fixture(scope="module")
def finished(tiny_recipe, tmp_path_factory):
    """A whole run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run_ranks(arguments(tiny_recipe, folder)) == [0]
    return folder


def test_files_of_a_run_have_the_modes_that_the_umask_says(finished):
    os.umask(umask := os.umask(0))
    for path in finished.rglob("*"):
        mode = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == mode, path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize(("world_size", "stage"), KILLED)
def test_kill_9_and_the_same_command_give_the_same_curve(
    world_size, stage, uninterrupted, tiny_recipe, tmp_path
):
    draw = random.Random(10 * world_size + stage)
    preset = f"cpu_zero{stage}"
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = arguments(tiny_recipe, folder, f"engine.preset={preset}")
    ranks = start_ranks(command, world_size, printed)
    wait_for_line(folder, draw.randrange(1, STEPS), ranks)
    time.sleep(draw.random() * 0.06)  # anywhere in a step, a validation or a save
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    assert wait_ranks(ranks) == [-signal.SIGKILL] * world_size
    codes = run_ranks(command, world_size, printed)
    assert codes == [0] * world_size, printed.read_text()[-3000:]
    whole_losses, whole_validations = uninterrupted(world_size, preset)
    assert losses(folder) == whole_losses
    assert read_log(folder / "log.jsonl", "valid") == whole_validations


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_one_rank_saves_and_exits_75_on_all(
    number, uninterrupted, tiny_recipe, tmp_path
):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    ranks = start_ranks(arguments(tiny_recipe, folder, "save.interval=1000"), 2, printed)
    wait_for_line(folder, 4, ranks)
    for _ in range(4):  # launchers and schedulers repeat it, also while the rank saves and ends
        with suppress(ProcessLookupError):  # it has ended, and is awaited
            os.kill(ranks[1].pid, number)
        time.sleep(0.05)
    assert wait_ranks(ranks) == [75, 75]
    done = len(losses(folder))
    assert 4 <= done < STEPS
    assert (folder / "checkpoints" / f"step-{done:08d}" / "MANIFEST.json").exists()
    assert f"after step {done} of {STEPS} and saved" in printed.read_text()
    if number == signal.SIGTERM:  # what is saved does not depend on the signal
        assert run_ranks(arguments(tiny_recipe, folder, "save.interval=1000"), 2) == [0, 0]
        assert (losses(folder), read_log(folder / "log.jsonl", "valid")) == uninterrupted(2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_signal_while_scoring_is_heeded_and_the_next_start_begins_with_it(
    world_size, tiny_recipe, tiny_data, tmp_path
):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    for split in ("valid", "test"):
        write_rows(data / f"{split}.jsonl", sample_rows(split, 300))
    slow = [
        f"data.path={data}", "data.packing=false", "optim.micro_batch_size=1",
        "optim.max_steps=4", "eval.interval=2", "save.interval=1000",
    ]  # fmt: skip
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert run_ranks(arguments(tiny_recipe, whole, *slow), world_size) == [0] * world_size
    moments = [  # in the middle, after the last step, and while the report's split is scored
        ("train", 2, "stopped in the validation after step 2 of 4", []),
        ("train", 4, "stopped in the validation after step 4 of 4", [2]),
        ("valid", 2, "stopped before the report", [2, 4]),
    ]
    for number, (kind, count, told, validated) in enumerate(moments):
        printed = tmp_path / f"printed-{number}"
        ranks = start_ranks(arguments(tiny_recipe, folder, *slow), world_size, printed)
        wait_for_line(folder, count, ranks, kind)
        os.kill(ranks[-1].pid, signal.SIGTERM)
        assert wait_ranks(ranks) == [75] * world_size
        assert told in printed.read_text()
        assert [row["step"] for row in read_log(folder / "log.jsonl", "valid")] == validated
        assert not (folder / "report" / "test.json").exists()
    assert run_ranks(arguments(tiny_recipe, folder, *slow), world_size) == [0] * world_size
    assert losses(folder) == losses(whole)
    logs = [read_log(path / "log.jsonl", "valid") for path in (folder, whole)]
    assert logs[0] == logs[1]
    saved = [
        json.loads((path / "checkpoints" / "step-00000004" / "trainer.json").read_text())["state"]
        for path in (folder, whole)
    ]
    assert [state["is_unscored"] for state in saved] == [False, False]
    assert saved[0]["best_step"] == saved[1]["best_step"]
    reports = [(path / "report" / "predictions.jsonl").read_text() for path in (folder, whole)]
    assert reports[0] == reports[1]


def test_fp16_continues_with_its_loss_scale(tiny_recipe, tmp_path):
    fp16 = ["engine.precision=fp16", "loss.alpha=[60.0, 60.0]", "optim.schedule=constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_ranks(arguments(tiny_recipe, whole, *fp16), allow_fp16=True) == [0]
    for steps in (7, STEPS):
        command = arguments(
            tiny_recipe, parts, *fp16, f"optim.max_steps={steps}", "run.accept_changes=true"
        )
        assert run_ranks(command, allow_fp16=True) == [0]
    skipped = [row["skipped_steps"] for row in read_log(whole / "log.jsonl")]
    assert 0 < skipped[-1] < STEPS
    assert losses(parts) == losses(whole)
    assert [row["skipped_steps"] for row in read_log(parts / "log.jsonl")] == skipped


def test_a_finished_run_only_reports_again(finished, copy, uninterrupted, tiny_recipe):
    assert run_ranks(arguments(tiny_recipe, copy)) == [0]
    for name in ("log.jsonl", "report/test.json", "report/predictions.jsonl"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()
    assert losses(copy) == uninterrupted(1)[0]


def test_73_resume_refuses_a_changed_recipe_and_names_the_change(copy, tiny_recipe, tmp_path):
    printed = tmp_path / "printed"
    changed = arguments(tiny_recipe, copy, "optim.lr=0.5", "run.seed=4")
    assert run_ranks(changed, 1, printed) == [2]
    assert "run.seed: 3 -> 4" in printed.read_text()
    assert "optim.lr: 0.01 -> 0.5" in printed.read_text()
    assert "run.accept_changes=true" in printed.read_text()


def test_a_smaller_micro_batch_continues_the_run(uninterrupted, tiny_recipe, tmp_path):
    folder, plain = tmp_path / "run", "tuning.lora_dropout=0.0"
    first = arguments(tiny_recipe, folder, plain, "optim.micro_batch_size=2", "save.interval=1")
    ranks = start_ranks(first, 1, tmp_path / "printed")
    wait_for_line(folder, 5, ranks)
    os.kill(ranks[0].pid, signal.SIGKILL)
    wait_ranks(ranks)
    second = arguments(tiny_recipe, folder, plain, "model.attention=sdpa")
    assert run_ranks(second, 1, tmp_path / "printed") == [0]
    assert losses(folder) == pytest.approx(uninterrupted(1, "cpu_zero1", plain)[0], rel=ROUNDING)


def test_52_resume_refuses_other_data(copy, tiny_recipe, tiny_data, tmp_path):
    other, printed = tmp_path / "train.jsonl", tmp_path / "printed"
    lines = (tiny_data / "train.jsonl").read_text().splitlines(keepends=True)
    other.write_text("".join(lines[:-2]))
    assert run_ranks(arguments(tiny_recipe, copy, f"data.train={other}"), 1, printed) == [4]
    assert "another train" in printed.read_text()


def test_a_flipped_bit_falls_back_to_the_checkpoint_before(finished, copy, tiny_recipe, tmp_path):
    printed = tmp_path / "printed"
    newest = copy / "checkpoints" / f"step-{STEPS:08d}" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert run_ranks(arguments(tiny_recipe, copy), 1, printed) == [0], printed.read_text()
    assert "does not match its sha256" in printed.read_text()
    assert losses(copy) == losses(finished)
    strict = f"run.resume={newest.parent}"
    newest.write_bytes(content)
    assert run_ranks(arguments(tiny_recipe, copy, strict), 1, printed) == [4]


def test_a_branch_from_an_older_checkpoint_has_a_folder_of_its_own_and_continues_there(
    finished, tiny_recipe, tmp_path
):
    branch, printed = tmp_path / "branch", tmp_path / "printed"
    older = min((finished / "checkpoints").iterdir())
    step = int(older.name.removeprefix("step-"))
    assert step < STEPS
    resume = f"run.resume={older}"
    assert run_ranks(arguments(tiny_recipe, finished, resume), 1, printed) == [2]
    assert "a run.output_dir of its own" in printed.read_text()
    command = arguments(tiny_recipe, branch, resume)
    assert run_ranks(command, 1, printed) == [0]
    assert losses(branch) == losses(finished)[step:]
    assert len(losses(finished)) == STEPS  # the first run is as it was
    log = (branch / "log.jsonl").read_bytes()
    assert run_ranks(command, 1, printed) == [0]
    assert "has begun" in printed.read_text()
    assert (branch / "log.jsonl").read_bytes() == log


def test_a_lost_best_checkpoint_is_replaced_by_a_new_validation(copy, tiny_recipe, tmp_path):
    facts = json.loads((copy / "model" / "focaltune.json").read_text())
    best = copy / "checkpoints" / f"step-{facts['step']:08d}" / "MANIFEST.json"
    best.unlink()
    assert run_ranks(arguments(tiny_recipe, copy), 1, tmp_path / "printed") == [0]
    assert json.loads((copy / "model" / "focaltune.json").read_text())["step"] == STEPS


def as_an_older_version_wrote_it(folder):
    """Put the renamed keys of a run's saved recipes back under their older names."""

    def older(recipe):
        block = recipe.pop("replication")
        recipe["loss"]["detach_modulator"] = block["detach_modulator"]
        recipe["eval"]["compat_population"] = block["compat_population"]
        return recipe

    recipe = folder / "config.yaml"
    recipe.write_text(yaml.safe_dump(older(yaml.safe_load(recipe.read_text()))))
    for step in (folder / "checkpoints").iterdir():
        trainer, manifest = (json.loads((step / f).read_text()) for f in WRITTEN)
        del trainer["start"]  # where another batch size began
        content = json.dumps(trainer | {"recipe": older(trainer["recipe"])}).encode()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"]["trainer.json"] = {"bytes": len(content), "sha256": digest}
        (step / "trainer.json").write_bytes(content)
        older_manifest = {key: manifest[key] for key in ("step", "files", "identity")}
        (step / "MANIFEST.json").write_text(json.dumps(older_manifest | {"format": 1}))


def test_a_run_with_renamed_keys_continues_evaluates_and_exports(
    copy, tiny_recipe, tiny_data, tmp_path
):
    as_an_older_version_wrote_it(copy)
    test = str(tiny_data / "test.jsonl")
    assert evaluate_main([str(copy), test, "--name", "again"]) == 0
    first, second = (
        json.loads((copy / "report" / f"{name}.json").read_text())["predictors"]["model"]
        for name in ("test", "again")
    )
    assert second == first
    assert export_main([str(copy), str(tmp_path / "merged"), "--merge"]) == 0
    printed = tmp_path / "printed"
    assert run_ranks(arguments(tiny_recipe, copy, "optim.max_steps=17"), 1, printed) == [2]
    assert "optim.max_steps: 16 -> 17" in printed.read_text()
    assert "detach_modulator" not in printed.read_text()
    shutil.rmtree(max((copy / "checkpoints").iterdir()))
    assert run_ranks(arguments(tiny_recipe, copy), 1, printed) == [0]
    assert len(losses(copy)) == STEPS


def test_the_counters_of_another_version_are_named_not_guessed():
    state = TrainState(step=3, best_score=0.5)
    assert TrainState.of(state.to_json()) == state
    older = state.to_json() | {"best_roc_auc": 0.5}
    del older["best_score"]
    with pytest.raises(ModelError, match=r"another version.*best_roc_auc.*best_score"):
        TrainState.of(older)


def test_the_recipe_in_the_run_folder_continues_the_run(tiny_recipe, tmp_path):
    folder = tmp_path / "run"
    assert run_ranks(arguments(tiny_recipe, folder, "optim.max_steps=6")) == [0]
    recipe = folder / "config.yaml"
    assert yaml.safe_load(recipe.read_text())["optim"]["max_steps"] == 6
    again = tmp_path / "again.yaml"
    again.write_text(recipe.read_text())
    assert run_ranks([str(again)]) == [0]
    assert len(losses(folder)) == 6


@pytest.fixture
def moved(copy, tiny_model, tiny_data):
    """A finished run whose base and data are not where its recipe says: it has model/ and base/."""
    recipe = (copy / "config.yaml").read_text()
    for path in (tiny_model, tiny_data):
        recipe = recipe.replace(str(path), f"/nowhere{path}")
    (copy / "config.yaml").write_text(recipe)
    return copy


def test_a_run_is_evaluated_without_its_data(moved, tiny_data, capsys):
    """What the baselines learned lies in the run; without it, and the data, they are left out."""
    command = [str(moved), str(tiny_data / "test.jsonl"), "--name", "again"]
    assert evaluate_main(command) == 0, capsys.readouterr().err
    before, alone = (
        json.loads((moved / "report" / f"{name}.json").read_text()) for name in ("test", "again")
    )
    assert set(LEARNED) < alone["predictors"].keys()
    assert alone["predictors"] == before["predictors"]
    said = alone["comparison"].pop("verdict").replace("this again set", "this test set")
    assert {**alone["comparison"], "verdict": said} == before["comparison"]
    assert "left out" not in "".join(capsys.readouterr())
    shutil.rmtree(moved / "baselines")
    assert evaluate_main(command) == 0, capsys.readouterr().err
    bare = json.loads((moved / "report" / "again.json").read_text())
    assert before["predictors"].keys() - bare["predictors"] == set(LEARNED)
    assert bare["comparison"] is None
    left_out = "baselines that learn from the run's data are left out: data.path: /nowhere"
    said = capsys.readouterr().err
    assert left_out in " ".join(said.split())
    assert f"  device     {'cuda' if torch.cuda.is_available() else 'cpu'} x 1" in said
    assert left_out in (moved / "report" / "again.md").read_text()
    assert evaluate_main([*command, f"data.path={tiny_data}"]) == 0, capsys.readouterr().err
    whole = json.loads((moved / "report" / "again.json").read_text())
    assert whole["predictors"] == before["predictors"]
    assert evaluate_main([*command, "data.path=/nowhere/else"]) == 3  # given, so not left out
    assert evaluate_main([*command, "optim.lr=1"]) == 2
    said = capsys.readouterr().err
    assert "of a trained model only these can be given: data.path" in said
    assert "--base FOLDER" in said


def test_baselines_do_not_learn_from_other_data(moved, tiny_data, tmp_path, capsys):
    other = shutil.copytree(tiny_data, tmp_path / "other")
    write_rows(other / "train.jsonl", sample_rows("train", 39))
    command = [str(moved), str(tiny_data / "test.jsonl"), "--name", "again"]
    assert evaluate_main([*command, f"data.path={other}"]) == 3
    assert "train differ from what" in capsys.readouterr().err


def test_a_run_is_merged_without_its_data_and_any_file_measures_the_drift(moved, tmp_path, capsys):
    def merged(name, *more):
        output = tmp_path / name
        assert export_main([str(moved), str(output), "--merge", *more]) == 0, capsys.readouterr()
        facts = json.loads((output / "focaltune.json").read_text())
        return (output / "model.safetensors").read_bytes(), facts["merge"]

    weights, alone = merged("alone")
    assert (alone["onto"], alone["num"]) == ("full", 32)
    assert "32 rows of the embedded functions" in capsys.readouterr().out
    other = write_rows(tmp_path / "other.jsonl", sample_rows("train", 7))
    again, drift = merged("measured", f"--data={other}")
    assert again == weights
    assert drift["num"] == 7
    assert 0 < drift["max_logit_difference"] < 1e-5
