"""Measures of many classes, and of several at once, are scikit-learn's."""

from dataclasses import replace

import numpy as np
import pytest
from example_sets import example_set
from sklearn import metrics as sk

from data.text.labels import Classes
from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.class_evaluation import write_class_report
from trainer.evaluation.functions.scores import of_functions
from trainer.evaluation.measures import measured, measures_of
from trainer.evaluation.predictors import ClassScored
from trainer.evaluation.resampling import Resampling, resamples

NAMES = ("safe", "a|b", "c")


def scored(is_one, num=40, seed=0):
    generator = np.random.default_rng(seed)
    scores_NC = generator.random((num, 3))
    if is_one:
        scores_NC /= scores_NC.sum(1, keepdims=True)
        return ClassScored(scores_NC, np.eye(3, dtype=bool)[generator.integers(0, 3, num)], True)
    return ClassScored(scores_NC, generator.random((num, 3)) < 0.4, False)


def test_many_classes_are_measured_as_scikit_learn_measures_them():
    one = scored(is_one=True)
    label_N, predicted_N = one.holds_NC.argmax(1), one.scores_NC.argmax(1)
    found = measured("classes", one)
    assert found == pytest.approx(
        {
            "class_accuracy": sk.accuracy_score(label_N, predicted_N),
            "balanced_accuracy": sk.balanced_accuracy_score(label_N, predicted_N),
            "macro_f1": sk.f1_score(label_N, predicted_N, average="macro"),
            "weighted_f1": sk.f1_score(label_N, predicted_N, average="weighted"),
            "top_3": None,  # of three classes
            "mean_ap": sk.average_precision_score(one.holds_NC, one.scores_NC, average="macro"),
            "macro_auc": sk.roc_auc_score(label_N, one.scores_NC, multi_class="ovr"),
        }
    )
    assert one.confusion == sk.confusion_matrix(label_N, predicted_N).tolist()


def test_several_classes_at_once_are_measured_as_scikit_learn_measures_them():
    several = scored(is_one=False)
    answers = several.holds_NC, several.scores_NC > 0.5
    assert measured("labels", several) == pytest.approx(
        {
            "class_accuracy": sk.accuracy_score(*answers),
            "macro_f1": sk.f1_score(*answers, average="macro"),
            "micro_f1": sk.f1_score(*answers, average="micro"),
            "mean_ap": sk.average_precision_score(several.holds_NC, several.scores_NC),
            "macro_auc": sk.roc_auc_score(several.holds_NC, several.scores_NC),
        }
    )


def test_a_class_that_is_absent_is_undefined_and_left_out_of_means():
    # truth a a b b, class c nowhere; F1 of a 2/3 (one of two found, none wrong), of b 4/5
    scores_NC = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
    one = ClassScored(scores_NC, np.eye(3, dtype=bool)[[0, 0, 1, 1]], True)
    found = measured("classes", one)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["class_accuracy"] == 0.75
    rows = one.by_class(NAMES)
    assert [row["num"] for row in rows] == [2, 2, 0]
    assert (rows[2]["recall"], rows[2]["roc_auc"], rows[2]["average_precision"]) == (None,) * 3


def test_the_report_counts_by_class_beside_the_shares_of_training(tmp_path):
    one = scored(is_one=True)
    rows = [{"label": "safe", "note": "", "group": f"commit{n // 2}"} for n in range(40)]
    prior_C, classes = np.array([0.5, 0.3, 0.2]), Classes(NAMES)
    found = write_class_report(
        tmp_path, "test", rows, one, Decision(), classes, prior_C, {"task": "x"}
    )
    share = one.holds_NC[:, 0].mean()
    assert found["predictors"]["prior"]["metrics"]["class_accuracy"] == pytest.approx(share)
    assert found["predictors"]["prior"]["metrics"]["macro_auc"] == 0.5
    page = (tmp_path / "test.md").read_text()
    assert "| a\\|b |" in page
    assert page.count("\n## ") == 3
    assert (tmp_path / "predictions.jsonl").read_text().count("\n") == 40
    assert "![Confusion matrix](test_confusion.svg)" in page
    assert (tmp_path / "test_confusion.svg").read_bytes().startswith(b"<svg ")
    assert found["population"]["num_groups"] == 20
    low, high = found["predictors"]["model"]["intervals"]["macro_auc"]
    assert low < found["predictors"]["model"]["metrics"]["macro_auc"] < high
    assert found["vulnerable"] is None  # no class says "not vulnerable"


def test_every_measure_of_classes_is_resampled_as_it_is_measured():
    for is_one in (True, False):
        one = scored(is_one=is_one, num=60, seed=3)
        weights_RN, _ = next(resamples(np.arange(60), Resampling(12, 1)))
        sums = one.resampled(weights_RN)
        rows = [np.repeat(np.arange(60), row.astype(int)) for row in weights_RN]
        again = [replace(one, scores_NC=one.scores_NC[r], holds_NC=one.holds_NC[r]) for r in rows]
        for name, measure in measures_of(one.measured).items():
            expected = [measure.function(resample) for resample in again]
            if None in expected:
                continue
            assert measure.resampled(sums) == pytest.approx(expected, rel=1e-5), name


def test_many_classes_also_answer_vulnerable_or_not(tmp_path):
    one = scored(is_one=True, num=80, seed=1)
    rows = [{"label": "x", "note": "", "group": ""} for _ in range(80)]
    classes, prior_C = Classes(("not vulnerable", "CWE-79", "CWE-89")), np.full(3, 1 / 3)
    decision = Decision(threshold=0.6, rule="recall=0.9")
    found = write_class_report(tmp_path, "test", rows, one, decision, classes, prior_C, {})
    metrics = found["vulnerable"]["predictors"]["model"]["metrics"]
    label_N, score_N = 1 - one.holds_NC[:, 0], 1 - one.scores_NC[:, 0]
    assert metrics["roc_auc"] == sk.roc_auc_score(label_N, score_N)
    assert metrics["tp"] == ((score_N >= 0.6) & (label_N == 1)).sum()
    assert (
        "the fewest false alarms at a recall of at least 0.9" in (tmp_path / "test.md").read_text()
    )


def test_a_label_among_the_three_highest_of_more_classes_counts():
    generator = np.random.default_rng(4)
    scores_NC, label_N = generator.random((50, 5)), generator.integers(0, 5, 50)
    five = ClassScored(scores_NC, np.eye(5, dtype=bool)[label_N], is_one=True)
    assert measured("classes", five)["top_3"] == sk.top_k_accuracy_score(label_N, scores_NC, k=3)


def test_several_classes_at_once_have_a_threshold_each():
    several = replace(scored(is_one=False), threshold_C=[0.2, 0.5, 0.9])
    expected = several.scores_NC >= [[0.2, 0.5, 0.9]]
    assert (several.predicted_NC == expected).all()


def test_windows_of_many_classes_take_the_most_alarming_and_of_several_each_its_highest():
    windows = example_set([[1], [2], [3]], records=[0, 0, 1])
    scores_EC = np.array([[0.9, 0.05, 0.05], [0.4, 0.5, 0.1], [0.2, 0.2, 0.6]])
    prior_C = np.full(3, 1 / 3)
    assert of_functions(scores_EC, windows, prior_C, "max").tolist() == scores_EC[1:].tolist()
    mean = of_functions(scores_EC, windows, prior_C, "mean")
    assert mean[0] == pytest.approx([0.65, 0.275, 0.075])
    several = windows.__class__(**{**vars(windows), "members_KC": np.eye(3, dtype=bool)})
    highest = of_functions(scores_EC, several, prior_C, "max")
    assert highest.tolist() == [[0.9, 0.5, 0.1], [0.2, 0.2, 0.6]]
