"""run.json says what made a run; train.py --repeat does it again and says how near it came."""

import json
import shutil
from importlib.metadata import version

import pytest
from rank_pool import run_ranks

from launcher.train import main as train
from trainer.run.passport import Original, read_passport
from trainer.run_folder.metrics import read_log


@pytest.fixture(scope="module")
def runs(tiny_recipe, tmp_path_factory):
    """A run of four steps that was started twice, its repeat, and what that printed."""
    folder = tmp_path_factory.mktemp("passport") / "run"
    words = [f"run.output_dir={folder}", "optim.max_steps=4", "eval.interval=epoch"]
    for _ in range(2):
        assert run_ranks([str(tiny_recipe), *words], 1, folder.with_suffix(".txt")) == [0]
    printed = folder.with_suffix(".repeat")
    assert run_ranks(["--repeat", str(folder)], 1, printed) == [0], printed.read_text()
    return folder, folder.with_name("run.repeated"), printed.read_text()


def changed(facts, section, **values):
    return facts | {section: facts[section] | values}


def test_a_passport_holds_code_versions_machine_data_time_and_measures(runs):
    folder, _, _ = runs
    facts = json.loads((folder / "run.json").read_text())
    assert facts["versions"]["torch"] == version("torch")
    assert facts["hardware"]["ranks"] == 1
    data = json.loads((folder / "data.json").read_text())
    assert facts["digests"]["train"] == data["sha256"]["train"]
    report = json.loads((folder / "report" / "test.json").read_text())
    assert facts["test"] == report["predictors"]["model"]
    assert facts["settled"]["engine.precision"] == "fp32"
    first, second = facts["sittings"]
    assert (first["first_step"], first["last_step"]) == (0, 4)
    assert (second["first_step"], second["last_step"]) == (4, 4)
    assert facts["hours"] == first["hours"] + second["hours"]
    assert 0 < facts["hours"] < 0.1
    assert facts["gpu_hours"] == 0  # tests outside tests/gpu see no GPU


def test_a_repeat_is_equal_to_the_last_bit_and_says_so(runs):
    folder, repeated, printed = runs
    losses = [[row["loss"] for row in read_log(run / "log.jsonl")] for run in (folder, repeated)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4
    assert f"repeats {folder} with the same code, versions, devices, base and data" in printed
    assert f"the repeat's 4 logged losses are those of {folder} to the last bit" in printed
    assert "test: the same measures" in printed


def test_what_differs_is_said_by_name(runs):
    folder, _, _ = runs
    facts = read_passport(folder)
    other = changed(facts, "versions", torch="2.0.0")
    lines = Original(folder, other).differences(facts)
    assert lines[1:] == [f"  versions.torch: 2.0.0 -> {version('torch')}"]
    assert "no run.json" in Original(folder, {}).differences(facts)[0]
    with pytest.raises(ValueError, match=r"^train differ from what .*restore the files") as caught:
        Original(folder, changed(facts, "digests", train="0")).refuse_other(facts["digests"])
    assert caught.value.exit_code == 4


def test_a_repeat_that_came_out_otherwise_says_where_and_by_how_much(runs, tmp_path):
    folder, repeated, _ = runs
    other = shutil.copytree(repeated, tmp_path / "other")
    rows = [json.loads(line) for line in (other / "log.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "train" and row["step"] >= 3:
            row["loss"] += 0.25
    (other / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = read_passport(folder)
    metrics = facts["test"]["metrics"]
    test = {"metrics": metrics | {"roc_auc": 2}}
    line, measures = Original(folder, facts).outcome(other, test)
    assert "of the repeat's 4 logged losses 2 differ" in line
    assert "first after step 3" in line
    assert line.endswith("by 0.25 at most")
    assert measures == f"test: roc_auc {metrics['roc_auc']} -> 2"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["optim.lr=5e-2"], 2, "optim.lr: 0.01 -> 0.05"),
        (["run.output_dir=RUN"], 2, "is the run itself"),
        (["--nothing"], 2, ""),
    ],
)
def test_a_repeat_that_would_be_another_run_is_refused(runs, words, code, said, capsys):
    folder, _, _ = runs
    words = [word.replace("RUN", str(folder)) for word in words]
    before = (folder / "run.json").read_bytes()
    try:
        ended = train(["--repeat", str(folder), *words])
    except SystemExit as parsed:
        ended = parsed.code
    assert ended == code
    assert said in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == before


def test_a_folder_without_a_run_or_with_a_damaged_passport_is_refused_by_name(
    runs, tmp_path, capsys
):
    assert train(["--repeat", str(tmp_path)]) == 4
    assert "holds no config.yaml" in capsys.readouterr().err
    damaged = shutil.copytree(runs[0], tmp_path / "damaged")
    facts = read_passport(damaged)
    for text in ("{", "[]", '{"format": 2}', json.dumps(facts | {"sittings": [3]})):
        (damaged / "run.json").write_text(text)
        assert train(["--repeat", str(damaged)]) == 4
        assert "run.json" in capsys.readouterr().err


def test_a_damaged_passport_keeps_no_run_from_continuing(runs, tiny_recipe, tmp_path):
    damaged = shutil.copytree(runs[0], tmp_path / "damaged")
    (damaged / "run.json").write_text("{")
    words = [f"run.output_dir={damaged}", "optim.max_steps=4", "eval.interval=epoch"]
    printed = tmp_path / "printed"
    assert run_ranks([str(tiny_recipe), *words], 1, printed) == [0]
    assert "this start is the first that a new one counts" in printed.read_text()
    assert len(read_passport(damaged)["sittings"]) == 1
