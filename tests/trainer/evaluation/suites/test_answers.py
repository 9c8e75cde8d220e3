"""Yes-or-no answers against the released answers of the study and scikit-learn."""

import gzip
import json
import random
from dataclasses import replace

import pytest
from conftest import REPOSITORY
from sklearn.metrics import accuracy_score, f1_score

from launcher.suite import main as suite
from trainer.evaluation.suites.answers import CLONE, DEFECT
from trainer.evaluation.suites.suite import Item
from trainer.evaluation.suites.suites import SUITES

RELEASED = REPOSITORY.parent / "shared" / "data" / "astraios_outputs"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Yes", "1"),
        ("NO.", "0"),
        ("Question: yes?\nAnswer: no\nAnswer: Yes, it is", "1"),
        ("It is fine, yes. no", "invalid"),  # the first sentence ends at the comma
        ("I do not think so", "0"),
        ("Yes. No", "1"),
        ("Yes, no", "1"),
        ("yes or no", "invalid"),
        ("yes and no: there is a defect", "1"),
        ("Hm. There is a defect", "1"),
        ("Hm. The code contains a defect", "1"),
        ("", "invalid"),
        ("static void yes_now(void)", "invalid"),
    ],
)
def test_an_answer_is_read_as_the_rule_says(text, answer):
    assert DEFECT.answer(text) == answer


def test_the_two_questions_have_their_own_phrases():
    assert DEFECT.answer("It has a defect") == "1"
    assert CLONE.answer("It has a defect") == "invalid"
    assert CLONE.answer("Hm. Here is a clone relation") == "1"


def test_rows_are_drawn_as_the_study_drew_them():
    labels = [int(n % 3 == 0) for n in range(60)]
    items = [Item(str(n), {"target": label}, n) for n, label in enumerate(labels)]
    random.seed(0)
    kinds = [[n for n in range(60) if labels[n] == kind] for kind in (0, 1)]
    expected = [kinds[0][n] for n in random.sample(range(40), 7)]
    expected += [kinds[1][n] for n in random.sample(range(20), 5)]
    drawn = replace(DEFECT, sampled=(7, 5)).select(items)
    assert [item.place for item in drawn] == sorted(expected)
    assert replace(DEFECT, sampled=(7, 21)).select(items) == items
    assert DEFECT.select(items) == items  # fewer than the study had


def test_of_many_pairs_those_are_drawn_that_the_study_asked_about():
    """bigcode-evaluation-harness, instruct_codexglue_clone_detection.py: pairs without a clone
    relation first, 1,726 of them, then 1,000 with one, seed 0.
    """
    labels = [n % 4 == 0 for n in range(9000)]
    items = [Item(str(n), {"label": label}, n) for n, label in enumerate(labels)]
    others, clones = ([n for n in range(9000) if labels[n] is kind] for kind in (False, True))
    random.seed(0)
    expected = [others[n] for n in random.sample(range(6750), 1726)]
    expected += [clones[n] for n in random.sample(range(2250), 1000)]
    assert [item.place for item in SUITES["clone"].select(items)] == sorted(expected)


def test_the_first_of_several_answers_counts():
    item = Item("0", {"target": 1}, 0)
    found = DEFECT.summary([(item, DEFECT.judge(item, ["yes", "no"]))])
    assert found["counts"] == {"1": 1}
    assert found["measures"]["accuracy"] == {"value": 100, "interval": None}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(name, folder, data, outputs, *words):
    given = ["--data", str(data), "--generations", str(outputs), "--output", str(folder)]
    assert suite([name, *given, *words]) == 0
    return json.loads((folder / name / "suite.json").read_text())


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in (RELEASED / "expected_defect_scores.txt").read_text().splitlines()
        if " acc " in line
    ]
    if RELEASED.is_dir()
    else [],
)
def test_released_answers_give_the_scores_of_the_study(line, tmp_path):
    size, method, *words = line.split(maxsplit=10)
    with gzip.open(RELEASED / "defect_detection_answers.json.gz") as stream:
        released = json.load(stream)
    truth = [{"func": "", "target": label} for label in released["true_label"]]
    texts = [{"id": n, "output": t} for n, t in enumerate(released["answers"][f"{size}-{method}"])]
    found = scored(
        "defect", tmp_path, written(tmp_path / "d.jsonl", truth),
        written(tmp_path / "o.jsonl", texts),
    )  # fmt: skip
    expected = dict(zip(words[::2], words[1::2], strict=False))
    measures = found["measures"]
    assert measures["accuracy"]["value"] == pytest.approx(float(expected["acc"]), abs=0.0051)
    assert measures["F1"]["value"] == pytest.approx(float(expected["f1pos"]), abs=0.0051)
    counted = json.loads(line[line.index("{") :].replace("'", '"'))
    assert found["counts"] == {k.replace("-1", "invalid"): n for k, n in counted.items()}
    low, high = measures["accuracy"]["interval"]
    assert low < measures["accuracy"]["value"] < high
    assert 3 < high - low < 6  # 2 * 1.96 * sqrt(p (1 - p) / 2000) is 3.9 to 4.4 points


ROWS = [{"func1": "a", "func2": "b", "label": label} for label in (True, False, 1, 0, "1", "0")]
TEXTS = ["Yes", "Yes", "No", "no", "perhaps", "perhaps"]


def test_scores_are_those_of_scikit_learn_and_an_invalid_answer_is_wrong(tmp_path):
    data = written(tmp_path / "clones.jsonl", ROWS)
    outputs = tmp_path / "o.json"
    outputs.write_text(json.dumps([[{"raw_text": f"q yes\nAnswer: {t}"}] for t in TEXTS]))
    found = scored("clone", tmp_path, data, outputs)
    truth, answers = [1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 2, 2]
    accuracy = 100 * accuracy_score(truth, answers)
    f1 = 100 * f1_score(truth, answers, labels=[1], average="micro")
    assert found["measures"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert found["measures"]["F1"]["value"] == pytest.approx(f1)
    assert found["counts"] == {"0": 2, "1": 2, "invalid": 2}
    page = (tmp_path / "clone" / "suite.md").read_text()
    assert "33.33" in page
    assert (tmp_path / "clone" / "suite.svg").exists()
    rows = [json.loads(line) for line in (tmp_path / "clone/items.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["pass", "fail", "fail", "pass"] + ["invalid"] * 2


def test_finished_items_are_not_judged_again_unless_their_output_is_another(tmp_path):
    data = written(tmp_path / "clones.jsonl", ROWS)
    texts = [{"id": n, "output": text} for n, text in enumerate(TEXTS)]
    first = scored("clone", tmp_path, data, written(tmp_path / "o.jsonl", texts), "--limit", "4")
    assert sum(first["counts"].values()) == 4
    log = tmp_path / "clone" / "items.jsonl"
    log.write_text(log.read_text() + '{"id": "4", "sam')  # killed while it wrote
    texts[0]["output"] = "no"
    whole = scored("clone", tmp_path, data, written(tmp_path / "o.jsonl", texts))
    assert whole["counts"] == {"0": 3, "1": 1, "invalid": 2}
    again = [row["id"] for row in map(json.loads, log.read_text().splitlines()[5:])]
    assert again == ["0", "4", "5"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["other", "--generations", "{o}"], 2, "is not a suite; there are defect"),
        (["clone", "defect", "--generations", "{o}"], 2, "belongs to one suite"),
        (["clone", "--generations", "{o}", "--limit", "0"], 2, "must be at least 1"),
        (["clone", "--generations", "{short}"], 3, "5 lists of outputs, the data 6 rows"),
        (["clone", "--generations", "{strange}"], 3, "99 is not an item"),
        (["clone", "--generations", "{one}"], 3, "has no output"),
        (["clone", "--generations", "{number}"], 3, "an output must be a text, found '7'"),
        (["defect", "--generations", "{o}"], 3, "needs one file of JSON lines with func, target"),
        (["MODEL", "other"], 2, "is not a suite; there are defect"),
    ],
)
def test_what_does_not_fit_is_an_error(words, code, said, tmp_path, capsys):
    data = written(tmp_path / "clones.jsonl", ROWS)
    files = {
        "o": [[text] for text in TEXTS],
        "short": [[text] for text in TEXTS[1:]],
        "strange": [{"id": 99, "output": ""}],
        "one": [{"id": 0, "output": ""}],
        "number": [[7]] * 6,
    }
    paths = {name: tmp_path / f"{name}.json" for name in files}
    for name, content in files.items():
        paths[name].write_text(json.dumps(content))
    given = [word.format(**paths) for word in words]
    assert suite([*given, "--data", str(data), "--output", str(tmp_path / "out")]) == code
    assert said in capsys.readouterr().err
