"""A suite with a model: any number of ranks, interrupted or not, a run or a plain base."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_rows
from rank_pool import run_ranks

from launcher.evaluate import main as evaluate
from launcher.suite import main as suite
from launcher.sweep import main as sweep
from trainer.evaluation.suites.suites import SUITES
from trainer.generation import sampling
from trainer.sweep.grid import expand

needs_sandbox = pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap here")
ROWS = [
    {"idx": n, "func": f"int f{n}(int a) {{ return a / {n}; }}", "target": n % 2} for n in range(5)
]
ROWS += [{"idx": 9, "func": "int long_one() {" + " x += 1;" * 300 + " }", "target": 1}]


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A whole model that has seen a few questions, and the data of a suite."""
    folder = tmp_path_factory.mktemp("suite")
    pairs = [{"instruction": f"say {n}", "output": f"yes, {n}."} for n in range(6)]
    data = str(write_rows(folder / "train.jsonl", pairs))
    values = {
        "run": {"output_dir": str(folder / "run"), "seed": 3},
        "model": {"config": str(tiny_model)},
        "task": {"name": "instruction"},
        "data": {
            "train": data, "valid": data, "test": data, "seq_length": 128, "allow_leaks": True,
        },
        "tuning": {"method": "full"},
        "optim": {"lr": 1e-4, "warmup_steps": 1, "max_steps": 2, "global_batch_size": 3},
        "log": {"interval": 1, "progress": False, "trackers": []},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    printed = folder / "printed.txt"
    assert run_ranks([str(folder / "recipe.yaml")], 1, printed) == [0], printed.read_text()[-3000:]
    return folder / "run", write_rows(folder / "defect.jsonl", ROWS)


def words(model, data, output, *more):
    return [str(model), "defect", "--data", str(data), "--output", str(output), *more]


def logged(folder, name="outputs"):
    lines = (folder / "defect" / f"{name}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return sorted(
        [{**row, "seconds": 0} for row in rows], key=lambda row: (row["id"], row["sample"])
    )


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert suite(words(*run, folder)) == 0
    assert len({row["output"] for row in logged(folder)}) > 1  # or equal outputs prove nothing
    return folder


def test_two_ranks_give_what_one_gives(run, alone, tmp_path):
    printed = tmp_path / "printed.txt"
    codes = run_ranks(words(*run, tmp_path, "--batch", "2"), 2, printed, entry=suite)
    assert codes == [0, 0], printed.read_text()[-3000:]
    assert logged(tmp_path) == logged(alone)
    assert logged(tmp_path, "items") == logged(alone, "items")
    reports = [
        json.loads((folder / "defect" / "suite.json").read_text()) for folder in (tmp_path, alone)
    ]
    assert reports[0] == reports[1]
    assert reports[0]["facts"]["items"] == 6


def test_what_is_finished_is_not_written_again(run, alone, tmp_path):
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "defect" / "outputs.jsonl"
    whole = log.read_text()
    assert suite(words(*run, tmp_path)) == 0
    assert log.read_text() == whole
    first, second, *_ = whole.splitlines(keepends=True)
    log.write_text(first + second[:-9])  # stopped in the middle of a line
    assert suite(words(*run, tmp_path)) == 0
    assert log.read_text().startswith(first + second[:-9] + "\n")
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"}' in line))
    assert logged(tmp_path) == logged(alone)


def test_other_weights_write_again(run, alone, tmp_path):
    shutil.copytree(run[0] / "model", tmp_path / "model")
    shutil.copytree(alone, tmp_path / "out")
    facts = tmp_path / "model" / "focaltune.json"
    facts.unlink()  # nothing of ours is left: a plain base
    for path in (tmp_path / "model").glob("*manifest*"):
        path.unlink()
    assert suite(words(tmp_path / "model", run[1], tmp_path / "out", "--limit", "3")) == 0
    rows = logged(tmp_path / "out")
    assert len(rows) == 6 + 3
    said = {(row["id"], row["output"]) for row in rows}
    assert len(said) == 6  # but they write the same


@needs_sandbox
def test_programs_and_scenarios_of_a_model_are_judged_once_written(run, tmp_path, monkeypatch):
    """Explained from its own descriptions; equal for passes of another size."""
    row = {
        "task_id": "Python/0", "prompt": "def f(a):\n    \"\"\"One.\"\"\"\n", "entry_point": "f",
        "declaration": "def f(a):\n", "canonical_solution": "    return 1\n",
        "buggy_solution": "    return 2\n", "test": "def check(f):\n    assert f(0) == 1\n",
        "docstring": "One thing that is said.", "instruction": "Write f.",
    }  # fmt: skip
    scenario = {
        "scenario_id": "DoW/CWE-79-0", "language": "python", "prompt": "def f(a):\n",
        "suffix": "\n", "check_ql": "ReflectedXss.ql",
    }  # fmt: skip
    write_rows(tmp_path / "pack.jsonl", [row])
    write_rows(tmp_path / "scenarios.jsonl", [scenario])
    names = ["humanevalpack-explain-python", "aatk"]
    for name in names:  # fewer and shorter answers, for the time it takes
        asking = replace(SUITES[name].asking, most_tokens=120, num_samples=10)
        if asking.describes is not None:
            asking = replace(asking, describes=replace(asking.describes, most_tokens=120))
        monkeypatch.setitem(SUITES, name, replace(SUITES[name], asking=asking))
    given = [str(run[0]), *names, "--data", str(tmp_path)]
    for batch in (3, 10):
        assert suite([*given, "--output", str(tmp_path / str(batch)), "--batch", str(batch)]) == 0
    for name in names:
        logs = [(tmp_path / str(batch) / name / "outputs.jsonl") for batch in (3, 10)]
        one, other = (sorted(log.read_text().splitlines()) for log in logs)
        assert one == other
        assert len(one) == 10
    said = [
        json.loads(line)["output"]
        for line in (logs[0].parents[1] / names[0] / "descriptions.jsonl").read_text().splitlines()
    ]
    assert len(said) == 10
    assert 0 < max(map(len, said)) <= len(row["docstring"])
    assert len({*said}) > 1
    report = json.loads((tmp_path / "3" / names[0] / "suite.json").read_text())
    assert {*report["measures"]} == {"pass@1", "pass@10"}


def test_a_lack_of_memory_says_what_the_cache_takes(run, tmp_path, monkeypatch, capsys):
    """4 bytes x 2 layers x (8 keys + 8 values) of one head x 512 tokens x 1,000 texts."""

    def fails(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sampling, "generate", fails)
    assert suite(words(*run, tmp_path, "--batch", "1000")) == 5
    size = 4 * 2 * (8 + 8) * 512 * 1000 / 2**30
    assert (
        f"1000 texts of up to 512 tokens together, whose keys and values take {size:.2f} GiB"
        in (capsys.readouterr().err)
    )


def test_a_classifier_is_refused(tiny_recipe, run, tmp_path, capsys):
    output = f"run.output_dir={tmp_path / 'run'}"
    assert run_ranks([str(tiny_recipe), output], 1, tmp_path / "printed.txt") == [0]
    assert suite(words(tmp_path / "run", run[1], tmp_path / "out")) == 2
    assert "is a classifier and writes nothing" in capsys.readouterr().err
    assert suite(words(run[0], run[1], tmp_path / "out", "--batch", "0")) == 2


def test_a_suite_of_programs_is_not_scored_as_text(run, tmp_path, capsys):
    row = {
        "task_id": "Go/0",
        "prompt": "",
        "canonical_solution": "",
        "test": "",
        "entry_point": "f",
    }
    pack = write_rows(tmp_path / "pack.jsonl", [{**row, "buggy_solution": ""}])
    assert evaluate([str(run[0]), str(pack)]) == 2
    said = capsys.readouterr().err
    assert f"launcher/suite.py {run[0]} humanevalpack-synthesize-go --data {pack}" in said
    scenario = {"scenario_id": "a", "prompt": "", "suffix": "", "check_ql": ""}
    assert evaluate([str(run[0]), str(write_rows(tmp_path / "s.jsonl", [scenario]))]) == 2
    assert "aatk --data" in capsys.readouterr().err


def test_a_sweep_measures_its_finished_cells_once_and_shows_their_scores(run, tmp_path):
    """The cell is the run of the other tests, at its place in the grid."""
    folder, data = run
    recipe, root = str(folder.parent / "recipe.yaml"), tmp_path / "grid"
    words = [recipe, f"run.output_dir={root}", "--methods", "full", "--suite-data", str(data)]
    [cell] = expand(Path(recipe), words[1:2], ["full"])[1]
    shutil.copytree(folder, cell.config.output_dir, ignore=shutil.ignore_patterns("suites"))
    assert sweep([*words, "--suites", "defect"]) == 0
    [measured] = cell.config.output_dir.glob("suites/defect/suite.json")
    page = (root / "report" / "report.md").read_text()
    assert "suites_by_trained.svg" in page
    before = measured.stat().st_mtime_ns
    assert sweep([*words, "--suites", "defect"]) == 0
    assert measured.stat().st_mtime_ns == before
    assert sweep([*words, "--suites", "defects"]) == 2
