"""The report holds the numbers, says plainly what they mean, and is written whole."""

import io
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics as sk

from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.baselines import (
    SHORTCUTS,
    TFIDF_LOGISTIC,
    Baseline,
    constant_baselines,
)
from trainer.evaluation.functions.predictions import DROPPED, Prediction
from trainer.evaluation.functions.report import constant_answer, in_use, write_function_report
from trainer.evaluation.report import print_report
from trainer.evaluation.resampling import Resampling

THRESHOLD = 0.5
FACTS = {"recipe": "recipes/a|b.yaml", "step": 400, "digests": {"train": "ab12"}}
FILES = {"test.json", "test.md", "test_roc.svg", "test_pr.svg", "test_calibration.svg"}
FILES |= {"predictions.jsonl"}


def predictions(num=120, strength=0.3, seed=0, labels=None):
    """Pairs of a vulnerable and a safe function that share a commit; one was dropped."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % 2 if labels is None else np.asarray(labels)
    noise = 0.2 * generator.standard_normal(num)
    scores = np.clip(0.5 + strength * (labels - 0.5) + noise, 0, 1)
    return [
        Prediction(
            id=f"f{i}",
            origin=f"src/a.c:{i}",
            label=int(label),
            score=float(score),
            predicted=int(score >= THRESHOLD),
            group=f"commit{i // 2}",
            cwe=("CWE-787", "CWE-416", "")[i // 2 % 3],
            status="read",
            num_tokens=100 + i,
            note=f"{DROPPED} (too long)" if i == 3 else "",
        )
        for i, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]


def baselines_for(rows, seed=1):
    labels = np.array([p.label for p in rows])
    noise = 0.2 * np.random.default_rng(seed).standard_normal(len(rows))
    words = Baseline(np.clip(0.5 + 0.1 * (labels - 0.5) + noise, 0, 1), 0.45)
    return {TFIDF_LOGISTIC: words, **constant_baselines(1 / 3, len(labels))}


def write(folder, rows, split="test", baselines=None, facts=FACTS):
    baselines = baselines_for(rows) if baselines is None else baselines
    return write_function_report(folder, split, rows, Decision(THRESHOLD), baselines, facts)


def test_the_json_holds_what_scikit_learn_computes_from_the_written_predictions(tmp_path):
    rows = predictions()
    returned = write(tmp_path, rows)
    assert {p.name for p in tmp_path.iterdir()} == FILES  # and no temporary file
    report = json.loads((tmp_path / "test.json").read_text())
    assert report == returned
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    read = [Prediction(**json.loads(line)) for line in lines]
    assert read == rows
    labels, scores = [p.label for p in read], [p.score for p in read]
    model = report["predictors"]["model"]
    assert model["metrics"]["roc_auc"] == sk.roc_auc_score(labels, scores)
    assert model["metrics"]["f1"] == sk.f1_score(labels, [p.predicted for p in read])
    low, high = model["intervals"]["roc_auc"]
    assert low < model["metrics"]["roc_auc"] < high
    assert report["population"]["num_scored_by_prior"] == 1
    assert report["population"]["num_groups"] == 60
    assert len(report["predictors"]) == 5


def test_the_page_states_population_table_confusion_facts_and_figures(tmp_path):
    report = write(tmp_path, predictions())
    page = (tmp_path / "test.md").read_text()
    assert "120 functions, 60 vulnerable (50.0%), in 60 groups" in page
    assert "Dropped before the model saw them, and scored by the prior: 1." in page
    m, i = report["predictors"]["model"]["metrics"], report["predictors"]["model"]["intervals"]
    cell = f"| model | {m['roc_auc']:.3f} [{i['roc_auc'][0]:.3f}, {i['roc_auc'][1]:.3f}] |"
    assert cell in page
    assert "| always negative | 0.500 [0.500, 0.500] | 0.500 [0.500, 0.500] | 0.000 [" in page
    assert f"| vulnerable | {m['fn']} | {m['tp']} |" in page
    assert r"| recipe | recipes/a\|b.yaml |" in page  # a pipe does not end the cell
    assert '| digests | {"train": "ab12"} |' in page
    assert "](test_roc.svg)" in page
    assert "](test_pr.svg)" in page
    assert "highest F1 on validation" in page


def test_each_cwe_is_counted_by_hand(tmp_path):
    rows = [p for p in predictions(num=24) if p.cwe != "CWE-416" or p.label == 1]
    report = write(tmp_path, rows)
    by_cwe = {row["cwe"]: row for row in report["slices"]["cwe"]}
    assert list(by_cwe) == ["", "CWE-787", "CWE-416"]  # most vulnerable, most functions, name
    members = [p for p in rows if p.cwe == "CWE-787"]
    truth, answers = [p.label for p in members], [p.predicted for p in members]
    assert by_cwe["CWE-787"]["recall"] == sk.recall_score(truth, answers)
    assert by_cwe["CWE-787"]["precision"] == sk.precision_score(truth, answers)
    assert by_cwe["CWE-787"]["f1"] == pytest.approx(sk.f1_score(truth, answers))
    assert by_cwe["CWE-416"]["num_positive"] == by_cwe["CWE-416"]["num"] == 4
    assert by_cwe["CWE-416"]["precision"] is None  # among positives alone it would always be 1
    assert "| CWE-416 | 4 | 4 | " in (tmp_path / "test.md").read_text()


def test_the_verdict_follows_the_paired_interval(tmp_path):
    rows = predictions()
    labels = np.array([p.label for p in rows])
    own = np.array([p.score for p in rows])
    noise = np.random.default_rng(2).random(len(rows))
    same = {TFIDF_LOGISTIC: Baseline(np.round(own, 1), 0.5)}
    for name, baselines, verdict in [
        ("noise", {TFIDF_LOGISTIC: Baseline(noise, 0.5)}, "better than"),
        ("labels", {TFIDF_LOGISTIC: Baseline(labels.astype(float), 0.5)}, "worse than"),
        ("same", same, "not distinguishable from"),
    ]:
        comparison = write(tmp_path / name, rows, baselines=baselines)["comparison"]
        sentence = f"{verdict} the word-count baseline on this test set"
        assert comparison["verdict"] == sentence
        assert f"**The model is {sentence}.**" in (tmp_path / name / "test.md").read_text()
        low, high = comparison["interval"]
        assert (low <= 0 <= high) == (name == "same")
        assert comparison["separate_intervals_overlap"] == (name == "same")


def test_another_split_keeps_its_own_files_beside_those_of_test(tmp_path):
    rows = predictions(num=20)
    write(tmp_path, rows)
    write(tmp_path, rows, split="valid", baselines={})
    assert (tmp_path / "valid_predictions.jsonl").exists()
    assert {p.name for p in tmp_path.iterdir()} > FILES
    assert json.loads((tmp_path / "valid.json").read_text())["comparison"] is None


def test_figures_are_the_same_again_and_fit_any_ground(tmp_path):
    rows = predictions()
    for folder in ("a", "b"):
        write(tmp_path / folder, rows)
    for name in ("test_roc.svg", "test_pr.svg"):
        content = (tmp_path / "a" / name).read_text()
        assert content == (tmp_path / "b" / name).read_text()
        root = ElementTree.fromstring(content)
        assert float(root.get("viewBox").split()[2]) < 360  # points, so that a phone shows them
        colours = set(re.findall(r"#[0-9a-f]{6}\b", content))
        assert colours == {"#0072b2", "#d55e00", "#8c8c8c", "#ffffff"}  # model, words, prior, rim
        assert "stroke: currentColor" in content  # axes
        assert "matplotlib" not in content.lower()
        texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any(text.startswith("model (A") for text in texts)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_called_undefined_everywhere_and_nothing_fails(tmp_path, label):
    rows = predictions(num=20, labels=[label] * 20)
    report = write(tmp_path, rows)
    assert report["comparison"] is None
    page = (tmp_path / "test.md").read_text()
    assert "| model | undefined | undefined | " in page
    assert "No interval is given" in page
    assert "nan" not in page.lower()


def test_the_number_of_resamples_is_the_callers_and_is_stated(tmp_path):
    rows = predictions(num=20)
    report = write_function_report(
        tmp_path, "test", rows, Decision(THRESHOLD), {}, {}, Resampling(50)
    )
    assert report["bootstrap"]["num_resamples"] == 50
    assert "50 resamples" in (tmp_path / "test.md").read_text()


def test_functions_without_a_commit_are_not_one_cluster(tmp_path):
    rows = [Prediction(**{**vars(p), "group": ""}) for p in predictions(num=20)]
    report = write(tmp_path, rows)
    assert report["bootstrap"]["num_clusters"] == 20
    assert report["predictors"]["model"]["intervals"]


def test_a_contradiction_stops_before_any_file_is_written(tmp_path):
    rows = predictions(num=20)
    flipped = [Prediction(**{**vars(rows[0]), "predicted": 1 - rows[0].predicted}), *rows[1:]]
    with pytest.raises(ValueError, match=r"f0 \(src/a\.c:0\) has predicted="):
        write(tmp_path, flipped)
    with pytest.raises(ValueError, match="'valid'"):
        write(tmp_path, rows, facts={"loss": 1.0}, split="../x' or 'valid'")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path, rows, facts={"loss": float("nan")})
    short = {TFIDF_LOGISTIC: Baseline(np.array([0.5]), 0.5)}
    with pytest.raises(ValueError, match="one per function"):
        write(tmp_path, rows, baselines=short)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_report_and_no_temporary_file(tmp_path, monkeypatch):
    rows = predictions(num=20)
    write(tmp_path, rows)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, predictions(num=20, seed=9))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_printed_table_has_a_row_and_an_interval_for_each_predictor(tmp_path):
    report = write(tmp_path, predictions())
    console = Console(file=io.StringIO(), width=160)
    print_report(report, console)
    printed = console.file.getvalue()
    for name, predictor in report["predictors"].items():
        low, high = predictor["intervals"]["mcc"]
        row = next(line for line in printed.splitlines() if f" {name} " in line)
        assert f"[{low:.3f}, {high:.3f}]" in row
    assert report["comparison"]["verdict"] in printed
    assert "are vulnerable:" in printed
    print_report(report | {"classes": ["different", "clone"]}, console)
    assert "are clone:" in console.file.getvalue()


def test_pairs_of_a_function_and_its_fix_are_counted_by_outcome(tmp_path):
    # (vulnerable, fixed): right, both called vulnerable, both safe, reversed, and a tie above.
    scores = [(0.9, 0.1), (0.8, 0.7), (0.3, 0.2), (0.2, 0.6), (0.7, 0.7)]
    rows = [
        replace(p, score=s, predicted=int(s >= THRESHOLD), pair=f"pair{n // 2}", label=1 - n % 2)
        for n, (p, s) in enumerate(zip(predictions(num=10), sum(scores, ()), strict=True))
    ]
    alone = [replace(rows[0], id="x", pair="alone"), replace(rows[0], id="y", pair="")]
    three = [replace(p, pair="three") for p in rows[:3]]  # which is whose fix is unknown
    pairs = write(tmp_path, [*rows, *alone, *three])["pairs"]
    assert pairs["num"] == 5
    assert pairs["both_right"] == pairs["both_safe"] == pairs["reversed"] == pytest.approx(1 / 5)
    assert pairs["both_vulnerable"] == pytest.approx(2 / 5)
    assert pairs["roc_auc"] == pytest.approx((1 + 1 + 1 + 0 + 0.5) / 5)
    assert pairs["intervals"]["roc_auc"][0] < 0.7 < pairs["intervals"]["roc_auc"][1]
    page = (tmp_path / "test.md").read_text()
    assert "| 5 pairs | share |" in page
    assert write(tmp_path / "none", predictions())["pairs"] is None


def test_slices_have_their_own_auc_and_a_kind_with_one_slice_is_left_out(tmp_path):
    rows = [
        replace(p, language="C" if n % 3 else "Java", project="one", num_tokens=100 * (1 + n % 4))
        for n, p in enumerate(predictions())
    ]
    slices = write(tmp_path, rows)["slices"]
    assert list(slices) == ["cwe", "language", "length"]  # not by the one project
    for row in slices["language"]:
        members = [p for p in rows if p.language == row["language"]]
        auc = sk.roc_auc_score([p.label for p in members], [p.score for p in members])
        assert row["roc_auc"] == pytest.approx(auc)
        assert row["interval"][0] < auc < row["interval"][1]
    assert [row["length"] for row in slices["length"]] == [
        "up to 128 tokens", "up to 256 tokens", "up to 512 tokens",
    ]  # fmt: skip
    for row in slices["cwe"]:  # against all safe functions
        chosen = [p for p in rows if not p.label or p.cwe == row["cwe"]]
        auc = sk.roc_auc_score([p.label for p in chosen], [p.score for p in chosen])
        assert row["roc_auc"] == pytest.approx(auc)


def test_a_function_with_two_weaknesses_counts_for_both(tmp_path):
    rows = predictions(num=20)
    rows[1] = replace(rows[1], cwe="CWE-1, CWE-2")
    by_cwe = {row["cwe"]: row["num"] for row in write(tmp_path, rows)["slices"]["cwe"]}
    assert by_cwe["CWE-1"] == by_cwe["CWE-2"] == 1


def test_precision_and_alarms_at_other_base_rates_by_hand():
    counts = {"tn": 90, "fp": 10, "fn": 20, "tp": 80}  # recall 0.8, false positive rate 0.1
    rows = in_use(counts, 0.02)
    assert [row["rate"] for row in rows] == ["1:1", "1:10", "1:34", "eval.base_rate"]
    row = rows[2]  # of 35,000 functions 1,000 are vulnerable: 800 found, 3,400 false alarms
    assert row["alarms"] == pytest.approx(4200 / 35)
    assert row["true"] == pytest.approx(800 / 35)
    assert row["missed"] == pytest.approx(200 / 35)
    assert row["precision"] == pytest.approx(800 / 4200)
    assert row["f1"] == pytest.approx(2 * 800 / (4200 + 1000))
    assert rows[3]["precision"] == pytest.approx(0.016 / (0.016 + 0.098))
    assert in_use({"tn": 5, "fp": 5, "fn": 0, "tp": 0}, None) == []


@pytest.mark.parametrize(
    ("counts", "is_constant"),
    [
        ((2, 140, 1, 145), True),  # 285 of 288 are called vulnerable
        ((140, 2, 145, 1), True),
        ((500, 10, 5, 20), False),  # 95% are called safe, and rightly
        ((500, 1, 20, 1), True),  # also, but of the vulnerable ones as well
        ((60, 40, 10, 90), False),
    ],
)
def test_an_answer_that_hardly_varies_is_the_first_sentence(tmp_path, counts, is_constant):
    named = dict(zip(("tn", "fp", "fn", "tp"), counts, strict=True))
    assert bool(constant_answer(named, ("safe", "vulnerable"))) == is_constant


def test_the_page_begins_with_a_constant_answer_and_the_table_prints_it(tmp_path):
    rows = [replace(p, score=0.6 + p.score / 3, predicted=1) for p in predictions()]
    report = write(tmp_path, rows)
    first = (tmp_path / "test.md").read_text().splitlines()[2]
    assert first.startswith("**Warning: the model answers 'vulnerable' for 120 of 120 functions")
    console = Console(file=io.StringIO(), width=140)
    print_report(report, console)
    assert console.file.getvalue().startswith("Warning: the model answers 'vulnerable'")


def test_the_rule_and_what_it_meant_on_validation_are_stated(tmp_path):
    valid = {"tn": 199, "fp": 1, "fn": 60, "tp": 40}
    decision = Decision(THRESHOLD, rule="fpr=0.005", temperature=2.0, valid=valid)
    baselines = baselines_for(predictions())
    report = write_function_report(tmp_path, "test", predictions(), decision, baselines, FACTS)
    page = (tmp_path / "test.md").read_text()
    assert "the highest recall at a false positive rate of at most 0.005 on validation" in page
    assert (
        "(there: recall 0.400, false positive rate 0.0050, precision 0.976, on 300 functions)."
        in page
    )
    assert "| 1:34 (2.86%) |" in page
    scores = np.array([p.score for p in predictions()])
    labels = np.array([p.label for p in predictions()])
    scaled = 1 / (1 + np.sqrt(1 / np.maximum(scores, 1e-12) - 1))  # sigmoid(logit / 2)
    brier = ((labels - scaled) ** 2).mean()
    assert report["calibration"]["scaled"]["brier"] == pytest.approx(brier, abs=1e-6)


def test_a_shortcut_that_does_as_well_is_said(tmp_path):
    rows = predictions()
    same = Baseline(np.round([p.score for p in rows], 1), 0.5)
    report = write(tmp_path, rows, baselines={**baselines_for(rows), SHORTCUTS: same})
    assert report["shortcut"]["verdict"].startswith(
        "not distinguishable from a baseline of comments"
    )
    assert (
        "how the functions were collected may tell the label" in (tmp_path / "test.md").read_text()
    )
