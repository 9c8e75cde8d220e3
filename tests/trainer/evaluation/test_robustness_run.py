"""Robustness of a run: functions are scored as any others, on any number of ranks."""

import json
import shutil

import pytest
from conftest import sample_rows, write_rows
from rank_pool import run_ranks

from launcher.evaluate import main as evaluate
from trainer.evaluation.robustness.languages import parsed
from trainer.evaluation.robustness.transformations import TRANSFORMATIONS, transformed


@pytest.fixture(scope="module")
def run(tiny_recipe, tmp_path_factory):
    """A trained run whose test split has functions that do not parse, and pairs."""
    folder = tmp_path_factory.mktemp("robust")
    rows = sample_rows("test", 24)
    rows += [rows[0] | {"id": "odd", "code": "int f( {", "commit": ""}]
    rows += [rows[0] | {"id": "go", "language": "Go", "commit": "", "function_name": "g"}]
    test = write_rows(folder / "test.jsonl", rows)
    command = [str(tiny_recipe), f"run.output_dir={folder / 'run'}", f"data.test={test}"]
    assert run_ranks([*command, "data.seq_length=256"], 1, folder / "printed.txt") == [0]
    return folder / "run", test, rows


def report_of(run, name):
    return json.loads((run / "report" / f"{name}_robustness.json").read_text())


def test_the_report_is_the_same_to_the_byte_on_one_and_three_ranks(run, tmp_path):
    folders = [shutil.copytree(run[0], tmp_path / str(num)) for num in (1, 3)]
    for folder, num in zip(folders, (1, 3), strict=True):
        printed, words = tmp_path / f"{num}.txt", [str(folder), str(run[1]), "--name", "own"]
        codes = run_ranks([*words, "--robustness"], num, printed, entry=evaluate, draws=True)
        assert codes == [0] * num, printed.read_text()[-3000:]
    for kind in ("json", "md", "svg"):
        one, three = (f / "report" / f"own_robustness.{kind}" for f in folders)
        assert one.read_bytes() == three.read_bytes()
    assert report_of(folders[0], "own")["transformations"]["names"]["largest_shift"] > 0


def test_changed_functions_score_as_in_a_file_of_their_own_and_the_others_are_counted(
    run, tmp_path, capsys
):
    folder, test, rows = run
    assert evaluate([str(folder), str(test), "--name", "own", "--robustness"]) == 0
    printed = capsys.readouterr().out
    report = report_of(folder, "own")
    assert report["languages"][""] == 2
    assert report["pairs"]["num"] == 12
    assert "of 12 pairs the vulnerable function has a higher score than its fix" in printed
    before, changed = scores(folder, "own"), []
    for name in TRANSFORMATIONS:
        for row in rows[:-2]:
            code = transformed(parsed(row["code"], row["language"]), name)
            if code is not None:
                changed.append(row | {"id": f"{row['id']} {name}", "code": code})
    again = write_rows(tmp_path / "again.jsonl", changed)
    assert evaluate([str(folder), str(again)]) == 0
    after = scores(folder, "again")
    for name, one in report["transformations"].items():
        assert one["num"] + sum(one["left_out"].values()) == len(rows)
        assert f"{one['num']} of 26" in printed
        ids = [row["id"] for row in rows[:-2] if f"{row['id']} {name}" in after]
        assert one["num"] == len(ids) - one["left_out"]["same tokens"]
        both = [(before[key], after[f"{key} {name}"]) for key in ids]
        if one["num"]:
            shift = [abs(new[0] - old[0]) for old, new in both]
            num_flips = sum(new[1] != old[1] for old, new in both)
            assert one["largest_shift"] == pytest.approx(max(shift), abs=2e-6)
            assert one["flip_rate"] == pytest.approx(num_flips / one["num"], abs=1e-6)
    page = (folder / "report" / "own_robustness.md").read_text()
    assert "26 functions: 2 not parsed" in page
    assert report["transformations"]["names"]["num"] == 24


def scores(folder, name):
    lines = (folder / "report" / f"{name}_predictions.jsonl").read_text().splitlines()
    rows = map(json.loads, lines)
    return {row["id"]: (row["score"], row["predicted"]) for row in rows}
