"""What a run leaves behind: log, TensorBoard, report, facts, and a lock while it lives."""

import json
import os
import shutil
import signal
import time

import pytest
import rank_checks
import yaml
from rank_pool import run_ranks, start_ranks, wait_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.chat import main as chat
from launcher.evaluate import main as evaluate
from trainer.evaluation.page.page import write_page
from trainer.run_folder.folder import LOCK
from trainer.run_folder.metrics import keep_lines, read_log


@pytest.fixture(scope="module")
def finished(tiny_recipe, tmp_path_factory):
    """A run of two ranks and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    printed = folder.with_suffix(".txt")
    more = ["tuning.modules_to_save=[wte]", "log.trackers=[tensorboard]"]
    command = [str(tiny_recipe), f"run.output_dir={folder}", *more]
    assert run_ranks(command, 2, printed, draws=True) == [0, 0]
    return folder, printed.read_text()


def test_tensorboard_holds_every_scalar_of_the_log(finished):
    folder, _ = finished
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = {
        "train/loss", "train/lr", "train/grad_norm", "train/tokens_per_second",
        "train/train_seconds", "train/records_per_second", "train/packing_fill", "train/memory_gib",
        "valid/roc_auc", "valid/pr_auc", "valid/f1", "valid/mcc", "valid/threshold",
    }  # fmt: skip
    assert names <= set(events.Tags()["scalars"])
    logged = read_log(folder / "log.jsonl")
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == [row["step"] for row in logged]
    assert [point.value for point in points] == pytest.approx([row["loss"] for row in logged])


def test_the_banner_says_what_the_run_is(finished):
    _, printed = finished
    for said in (
        "device     cpu x 2", "precision  fp32 (CPU)", "attention  segment_sdpa (CPU:",
        "loss       reference (classification", "lora       fused (plain linear layers",
        "68,288 of", "40 functions, 20 vulnerable", "8 of 640 tokens, packed, 88.4% full",
        "8 (4 an epoch)", "records    varlen (segment_sdpa): max |diff| to stock =", "estimate",
    ):  # fmt: skip
        assert said in printed
    assert printed.count("max |diff| to stock") == 1  # rank 0 speaks


def test_the_last_lines_say_where_everything_is_and_what_comes_next(finished):
    folder, printed = finished
    said = [line.split() for line in printed.splitlines()[-6:]]
    assert said[:2] == [["model", f"{folder}/model"], ["report", f"{folder}/report/test.md"]]
    assert said.pop(2) == ["page", f"{folder}/report/index.html"]
    assert (folder / "model" / "focaltune.json").is_file()
    assert (folder / "report" / "test.md").is_file()
    assert [words[-3] for words in said[2:]] == [
        "launcher/evaluate.py", "launcher/predict.py", "launcher/export.py",
    ]  # fmt: skip
    assert {words[-2] for words in said[2:]} == {str(folder)}


def test_the_page_says_what_was_run_on_which_data_and_how_it_went(finished):
    folder, _ = finished
    page = (folder / "report" / "index.html").read_text()
    papers = json.loads((folder / "run.json").read_text())
    assert f'<pre class="again">{papers["repeat"]}</pre>' in page
    assert "<td>tuning.lora_r</td><td>4</td><td>8</td>" in page
    assert "lora_alpha" not in page  # as its default
    assert f"<td>torch</td><td>{papers['versions']['torch']}</td>" in page
    assert "<tr><td>functions</td><td>40</td><td>20</td><td>20</td></tr>" in page
    assert "<tr><td>steps</td><td>8 (" in page
    for title in ("Loss over steps", "Validation over steps", "ROC on test"):
        assert page.count(f">{title}</text>") == 1
    errors = json.loads((folder / "report" / "test.json").read_text())["errors"]
    assert errors
    assert page.count("<details><summary>\n<b>") == len(errors)
    audit = folder.with_name("run.audit")
    audit.mkdir()
    (audit / "audit.md").write_text("# Audit of these data\n")
    data = json.loads((folder / "data.json").read_text())
    assert data["remarks"] == []  # nothing to say of these data
    data["remarks"] = ["train: 3 <b> repeat"]
    (folder / "data.json").write_text(json.dumps(data))
    page = write_page(folder / "report", "", folder).read_text()
    assert "<h2>Audit of these data</h2>" in page
    assert "<p>train: 3 &lt;b&gt; repeat</p>" in page


def test_the_run_folder_holds_what_made_it(finished):
    folder, _ = finished
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    assert recipe["optim"]["schedule"] == "cosine"  # defaults are filled in
    assert recipe["tuning"]["modules_to_save"] == ["wte"]  # and nothing else has changed
    settings = json.loads((folder / "ds_config.json").read_text())
    assert settings["zero_optimization"]["stage"] == 1
    assert recipe["optim"]["max_grad_norm"] == 1.0
    assert settings["gradient_clipping"] == 0.0  # engine/finite.py clips in DeepSpeed's place
    facts = json.loads((folder / "data.json").read_text())
    assert facts["splits"]["train"]["tokens"]["num_functions"] == 40
    assert set(facts["sha256"]) == {"tokenizer", "train", "valid", "test"}


def test_the_report_covers_every_test_function_with_its_origin(finished):
    folder, _ = finished
    lines = (folder / "report" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["origin"] for row in rows] == [f"test.jsonl:{n}" for n in range(1, 21)]
    report = json.loads((folder / "report" / "test.json").read_text())
    assert report["predictors"]["always positive"]["metrics"]["f1"] == pytest.approx(2 / 3)
    for name in ("test.md", "test_roc.svg", "test_pr.svg"):
        assert (folder / "report" / name).stat().st_size > 500


def test_the_kept_threshold_and_step_are_those_of_the_best_validation(finished):
    folder, _ = finished
    rows = read_log(folder / "log.jsonl", "valid")
    best = max(rows, key=lambda row: row["roc_auc"])
    facts = json.loads((folder / "model" / "focaltune.json").read_text())
    assert facts["step"] == best["step"]
    assert facts["decision"]["threshold"] == best["threshold"]
    report = json.loads((folder / "report" / "test.json").read_text())
    assert report["threshold"] == best["threshold"]


def test_evaluate_gives_the_scores_of_the_run_again(finished, tiny_data):
    folder, _ = finished
    assert evaluate([str(folder), str(tiny_data / "test.jsonl"), "--name", "again"]) == 0
    first, again = (
        [json.loads(line)["score"] for line in (folder / "report" / name).read_text().splitlines()]
        for name in ("predictions.jsonl", "again_predictions.jsonl")
    )
    assert again == pytest.approx(first, abs=1e-6)
    assert evaluate([str(folder), str(tiny_data / "missing.jsonl")]) == 3


def scores_of(path):
    return [json.loads(line)["score"] for line in path.read_text().splitlines()]


def test_evaluate_takes_several_files_with_columns_of_their_own(finished, tiny_data, tmp_path):
    folder, _ = finished
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    halves = [tmp_path / f"half{n}.jsonl" for n in range(2)]
    for half, part in zip(halves, (rows[:7], rows[7:]), strict=True):
        lines = [json.dumps({"func": row["code"], "is_bad": row["target"]}) for row in part]
        half.write_text("\n".join(lines))
    fields = "data.fields={code: func, target: is_bad}"
    assert evaluate([str(folder), *map(str, halves), fields, "--name", "halves"]) == 0
    found = scores_of(folder / "report" / "halves_predictions.jsonl")
    assert found == pytest.approx(scores_of(folder / "report" / "predictions.jsonl"), abs=1e-6)
    glob = [str(folder), str(tmp_path / "half*.jsonl"), fields, "--name", "glob"]
    assert evaluate(glob) == 0
    assert scores_of(folder / "report" / "glob_predictions.jsonl") == found
    assert evaluate([str(folder), str(halves[0])]) == 3  # without its columns
    assert evaluate([str(folder), str(halves[0]), "optim.lr=1"]) == 2
    assert evaluate([str(folder), fields]) == 2


def test_evaluate_writes_the_same_bytes_on_one_and_three_ranks(finished, tiny_data, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    command = [str(folder), str(tiny_data / "valid.jsonl"), "--name"]
    assert evaluate([*command, "one"]) == 0
    printed = tmp_path / "printed"
    assert run_ranks([*command, "three"], 3, printed, entry=rank_checks.evaluate) == [0, 0, 0]
    assert "cpu x 3" in printed.read_text()
    one, three = (folder / "report" / f"{name}_predictions.jsonl" for name in ("one", "three"))
    assert one.read_bytes() == three.read_bytes()


def test_112_a_second_live_run_in_the_folder_is_refused(tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = [str(tiny_recipe), f"run.output_dir={folder}", "optim.max_steps=100000"]
    first = start_ranks(command)
    deadline = time.monotonic() + 60
    while not (folder / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run_ranks(command, 1, printed) == [5]
    assert "another run is writing here" in printed.read_text()
    os.kill(first[0].pid, signal.SIGKILL)
    wait_ranks(first)


def test_69_a_folder_that_holds_no_run_is_left_alone(tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    assert run_ranks([str(tiny_recipe), f"run.output_dir={folder}"], 2, printed) == [2, 2]
    assert "not empty and holds no run" in printed.read_text()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_70_a_folder_that_cannot_be_made_ends_with_code_5_on_all_ranks(tiny_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    printed = tmp_path / "printed"
    command = [str(tiny_recipe), f"run.output_dir={tmp_path / 'file' / 'run'}"]
    assert run_ranks(command, 2, printed) == [5, 5]
    assert "is not writable" in printed.read_text()


def test_118_a_full_disk_in_the_log_ends_with_code_5_on_all_ranks(tiny_recipe, tmp_path):
    """A folder where config.yaml belongs stands for a write that fails on rank 0 alone."""
    folder, printed = tmp_path / "run", tmp_path / "printed"
    (folder / "config.yaml").mkdir(parents=True)
    (folder / LOCK).touch()
    assert run_ranks([str(tiny_recipe), f"run.output_dir={folder}"], 2, printed) == [5, 5]
    assert "then repeat the command" in printed.read_text()


def test_a_step_that_is_not_finite_ends_with_code_6_and_keeps_the_checkpoint(tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = [str(tiny_recipe), f"run.output_dir={folder}", "optim.lr=1e9", "save.interval=1"]
    assert run_ranks(command, 2, printed) == [6, 6], printed.read_text()[-2000:]
    assert "step" in printed.read_text()


def test_the_log_loses_later_steps_and_a_torn_line(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [{"kind": "train", "step": step, "loss": 1.0} for step in range(1, 6)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
    keep_lines(log, 3)
    assert [row["step"] for row in read_log(log)] == [1, 2, 3]
    with log.open("a") as stream:
        for kind, step in (("valid", 2), ("valid", 3), ("train_file", 3), ("sample", 3)):
            stream.write(json.dumps({"kind": kind, "step": step}) + "\n")
    keep_lines(log, 3, is_scored=False)  # the validation after step 3 is still to come
    assert [len(read_log(log, kind)) for kind in ("train", "valid", "train_file", "sample")] == [
        3, 1, 1, 0,
    ]  # fmt: skip


def test_damaged_lines_of_the_log_are_set_aside_and_counted(tmp_path):
    log = tmp_path / "log.jsonl"
    sound = [json.dumps({"kind": "train", "step": step}).encode() for step in range(1, 4)]
    damaged = [b'{"kind": "tr\xffin", "step": 2}', b"[" * 5000, b"7", b'{"kind": 1, "step": 1}']
    damaged += [b'{"kind": "train", "step": true}', b"", b'{"kind": "train"}']
    log.write_bytes(b"\n".join([sound[0], *damaged, *sound[1:], b'{"torn']))
    assert [row["step"] for row in read_log(log)] == [1, 2, 3]
    assert keep_lines(log, 2) == len(damaged)
    assert [row["step"] for row in read_log(log)] == [1, 2]
    assert (tmp_path / "damaged-log.txt").read_bytes().split(b"\n")[:-1] == damaged
    assert keep_lines(log, 2) == 0


def test_a_start_that_failed_does_not_lock_the_folder(tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    command = [str(tiny_recipe), f"run.output_dir={folder}"]
    assert run_ranks([*command, "tuning.target_modules=[no_such]"], 2, printed) == [4, 4]
    assert "end in ['c_attn', 'c_fc', 'c_proj', 'score']" in printed.read_text()
    assert run_ranks(command, 2, printed) == [0, 0], printed.read_text()[-2000:]


def test_a_run_without_validations_still_ends_with_a_threshold(tiny_recipe, tiny_data, tmp_path):
    folder = tmp_path / "run"
    command = [str(tiny_recipe), f"run.output_dir={folder}", "eval.interval=never"]
    assert run_ranks(command, 1, tmp_path / "printed") == [0]
    assert len(read_log(folder / "log.jsonl", "valid")) == 1
    assert evaluate([str(folder), str(tiny_data / "valid.jsonl")]) == 0


def test_a_moved_run_is_evaluated_where_it_is(finished, tiny_data, tmp_path):
    moved = shutil.copytree(finished[0], tmp_path / "moved here")
    assert evaluate([str(moved), str(tiny_data / "valid.jsonl"), "--name", "v"]) == 0
    assert (moved / "report" / "v.md").exists()
    assert not (finished[0] / "report" / "v.md").exists()


def test_evaluate_does_not_overwrite_the_test_report_or_take_any_name(finished, tiny_data):
    folder, _ = finished
    before = (folder / "report" / "test.json").read_bytes()
    assert evaluate([str(folder), str(tiny_data / "valid.jsonl"), "--name", "test"]) == 2
    assert evaluate([str(folder), str(tiny_data / "valid.jsonl"), "--name", "../x"]) == 2
    assert (folder / "report" / "test.json").read_bytes() == before


def test_a_classifier_is_no_model_to_chat_with(finished, capsys):
    assert chat([str(finished[0])]) == 2
    assert "is a classifier and writes nothing" in capsys.readouterr().err


def test_a_group_weight_for_no_function_is_refused(tiny_recipe, tmp_path):
    printed = tmp_path / "printed"
    command = [str(tiny_recipe), f"run.output_dir={tmp_path / 'run'}"]
    assert run_ranks([*command, "loss.group_weights={VULNERABEL: 2.0}"], 1, printed) == [3]
    assert "['FIXED', 'VULNERABLE']" in printed.read_text()
