"""Robust pass and change by hand, and on what the study released."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from released import DATA, needs_data, released

from data.errors import DataError
from trainer.evaluation.suites.asking import ASKING
from trainer.evaluation.suites.recode import (
    recode_items,
    recode_summary,
    robust_change,
    robust_pass,
)
from trainer.evaluation.suites.suite import Item, Judged

ARCHIVE = DATA / "recode_humaneval_s0-4"
T, F = True, False
# problem -> perturbation -> samples, and the samples of the nominal prompt
PASSED = {
    "A": {"0": [T, F], "1": [T, T]},  # worst [T, F]: the second is broken
    "B": {"0": [F, T], "1": [F, F]},  # worst [F, F]: the second is repaired by one of them
    "C": {"0": [F, T], "1": [T, T]},  # worst [F, T]: one broken, one repaired
}
NOMINAL = {"A": [T, T], "B": [F, F], "C": [T, F]}


def test_robust_pass_and_change_by_hand():
    assert robust_pass(PASSED, 1).tolist() == [0.5, 0.0, 0.5]
    assert robust_pass(PASSED, 2).tolist() == [1.0, 0.0, 1.0]
    assert robust_change(PASSED, NOMINAL, 1).tolist() == [0.5, 0.5, 1.0]
    assert robust_change(PASSED, NOMINAL, 2).tolist() == [1.0, 1.0, 2.0]


def results(passed, category="format", transformation="lines", **verdicts):
    for problem, seeds in passed.items():
        for seed, samples in seeds.items():
            row = {
                "category": category, "transformation": transformation, "seed": seed,
                "task_id": problem,
            }  # fmt: skip
            judged = [Judged(verdicts.get(problem, "pass" if one else "fail")) for one in samples]
            yield Item(f"{transformation}{seed}{problem}", row, 0), judged


def test_a_category_is_the_worst_of_its_transformations():
    nominal = results({p: {"": s} for p, s in NOMINAL.items()}, transformation="nominal")
    other = {p: {"0": [T, T]} for p in PASSED} | {"A": {"0": [F, F]}}
    given = [*results(PASSED), *results(other, transformation="tabs"), *nominal]
    found = recode_summary(given)
    values = {name: one["value"] for name, one in found["measures"].items()}
    # A fails under tabs; B is repaired in both samples
    assert values == pytest.approx(
        {"RP@1 format": 100 / 6, "RC@1 format": 100 * 3 / 3, "pass@1 format": 50}
    )
    assert found["transformations"]["format"]["lines"]["RP@1"] == pytest.approx(100 / 3)
    assert found["transformations"]["format"]["lines"]["RC@1"] == pytest.approx(200 / 3)
    # no RC without nominal outputs; a problem that could not be judged is left out
    found = recode_summary([*results(PASSED, B="error")])
    assert list(found["measures"]) == ["RP@1 format"]
    assert found["measures"]["RP@1 format"]["value"] == 50
    assert found["left_out"] == 1
    ten = {problem: {"0": [T] * 5 + [F] * 5} for problem in PASSED}
    assert {*recode_summary([*results(ten)])["measures"]} == {"RP@1 format", "RP@10 format"}


def archive(path: Path, files) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, rows in files.items():
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            info = tarfile.TarInfo(f"dataset-release/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_an_archive_is_read_in_place_and_says_what_it_lacks(tmp_path):
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "", "entry_point": "f"}
    files = {
        "perturbed_finalized/humaneval/full/format/humaneval_tabs_s1.jsonl": [row],
        "perturbed_finalized/mbpp/full/format/mbpp_tabs_s1.jsonl": [row],
        "nominal/HumanEval.jsonl": [row],
    }
    path = archive(tmp_path / "recode.tar.gz", files)
    with pytest.raises(DataError, match=r"humaneval_partial.* is missing"):
        recode_items("format")(path)
    path = archive(path, files | {"nominal/humaneval_partial.jsonl": [row]})
    ids = [item.id for item in recode_items("format")(tmp_path)]
    assert ids == ["format/tabs_s1/HumanEval/0", "format/nominal/HumanEval/0"]
    half = {**row, "prompt": "def f():\n    pass\n"}
    more = {"nominal/humaneval_partial.jsonl": [half], "nominal/README.md": ["text"]}
    more |= {"other/HumanEval.jsonl": ["text"]}
    more |= {"perturbed_finalized/humaneval/full/func_name/humaneval_Swap_s0.jsonl": [row]}
    items = recode_items("function", "format")(archive(path, files | more))
    assert [(item.place, item.id, item.row["prompt"], item.is_extra) for item in items] == [
        (0, "function/Swap_s0/HumanEval/0", row["prompt"], False),
        (1, "format/tabs_s1/HumanEval/0", row["prompt"], False),
        (2, "function/nominal/HumanEval/0", row["prompt"], True),
        (3, "format/nominal/HumanEval/0", half["prompt"], True),
    ]
    assert {item.row["helpers"] for item in items} == {row["prompt"]}
    archive(path, files | {"nominal/humaneval_partial.jsonl": [{"task_id": "x"}]})
    with pytest.raises(DataError, match="has no task_id, prompt, test or entry_point"):
        recode_items("format")(path)


@needs_data
def test_the_studys_prompts_are_ours_in_their_order_and_its_programs_are_what_we_keep():
    items = recode_items("format")(ARCHIVE)
    outputs = released("humaneval-format-num_seeds_5-starcoderbase-1b-lora")
    asking = ASKING["recode"]
    assert len(items) == len(outputs) + 164
    for item, [program] in zip(items, outputs, strict=False):
        prompt = asking.prompt(item.row, "")
        assert program.startswith(prompt)
        assert asking.program(item.row, program.removeprefix(prompt)) == program
    others = recode_items("docstring", "function", "syntax")(ARCHIVE)
    assert len(others) == (91 - 2 - 10 + 3) * 164  # of 91 files 2 are nominal, 10 of format
    assert np.unique([item.id for item in items]).size == len(items)
