"""Metrics and the threshold: by hand, by brute force, and against scikit-learn."""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from trainer.config.threshold import ThresholdRule
from trainer.evaluation.functions.metrics import (
    at_temperature,
    choose_threshold,
    classification_metrics,
    temperature_of,
)

ROOT = Path(__file__).resolve().parents[3]
LABELS = [0, 0, 1, 1, 1]
SCORES = [0.1, 0.6, 0.4, 0.6, 0.9]


def best_threshold(scores, labels):
    return choose_threshold(scores, labels)[0]


def test_small_example_has_the_values_worked_out_by_hand():
    m = classification_metrics(SCORES, LABELS, 0.5)
    assert (m["tn"], m["fp"], m["fn"], m["tp"]) == (1, 1, 1, 2)
    # 6 pairs: 0.1 loses to all three; 0.6 ties with 0.6, beats 0.4, loses to 0.9: 4 + 0.5 of 6.
    assert m["roc_auc"] == pytest.approx(4.5 / 6)
    # Thresholds 0.9, 0.6, 0.4: precision 1, 2/3, 3/4, each adding a recall of 1/3.
    assert m["pr_auc"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert m["precision"] == m["recall"] == m["f1"] == pytest.approx(2 / 3)
    assert m["mcc"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert m["accuracy"] == pytest.approx(3 / 5)
    assert (m["num"], m["num_positive"]) == (5, 3)
    assert m["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.16 + 0.01) / 5)
    assert m["num_positive"] == 3


@pytest.mark.parametrize("seed", range(20))
def test_metrics_equal_scikit_learn_with_ties(seed):
    generator = np.random.default_rng(seed)
    labels = np.r_[0, 1, generator.integers(0, 2, 60)]
    scores = generator.integers(0, 11, len(labels)) / 10  # 11 values for 62 functions: ties
    m = classification_metrics(scores, labels, 0.5)
    answers = scores >= 0.5
    assert m["roc_auc"] == sk.roc_auc_score(labels, scores)
    assert m["pr_auc"] == sk.average_precision_score(labels, scores)
    assert m["mcc"] == sk.matthews_corrcoef(labels, answers)
    assert m["brier"] == pytest.approx(sk.brier_score_loss(labels, scores), abs=1e-15)
    assert m["f1"] == sk.f1_score(labels, answers)


def test_a_score_equal_to_the_threshold_is_positive():
    assert classification_metrics([0.5, 0.4999], [1, 0], 0.5)["tp"] == 1
    assert classification_metrics([0.5, 0.4999], [1, 0], 0.5)["tn"] == 1


def test_perfect_scores_reach_one_and_reversed_scores_reach_the_floor():
    perfect = classification_metrics([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5)
    assert (perfect["roc_auc"], perfect["pr_auc"], perfect["f1"], perfect["mcc"]) == (1, 1, 1, 1)
    worst = classification_metrics([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.5)
    assert (worst["roc_auc"], worst["f1"], worst["mcc"]) == (0, 0, -1)
    assert worst["pr_auc"] == pytest.approx((1 / 3 + 2 / 4) / 2)  # positives at ranks 3 and 4


@pytest.mark.parametrize("label", [0, 1])
def test_42_one_class_leaves_the_ranking_metrics_undefined(label):
    m = classification_metrics([0.2, 0.7, 0.9], [label] * 3, 0.5)
    assert m["roc_auc"] is None
    assert m["pr_auc"] is None
    assert (m["mcc"], m["recall"]) == (0.0, 2 / 3 * label)
    assert m["f1"] == pytest.approx(0.8 * label)  # precision 1, recall 2/3
    assert all(math.isfinite(v) for v in m.values() if v is not None)
    assert best_threshold([0.2, 0.7, 0.9], [label] * 3) == 0.5


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_one_answer_has_correlation_zero_without_a_warning(score):
    m = classification_metrics([score] * 4, [0, 1, 1, 0], 0.5)
    assert (m["mcc"], m["roc_auc"], m["pr_auc"]) == (0.0, 0.5, 0.5)


def test_always_positive_on_the_252_function_test_set_scores_0_656():
    m = classification_metrics([1.0] * 252, [1] * 123 + [0] * 129, 0.5)
    assert m["f1"] == pytest.approx(2 * 123 / (123 + 252))
    assert round(m["f1"], 3) == 0.656


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"2 of 4 scores .*2 are NaN.*index 1: nan"):
        classification_metrics([0.1, math.nan, 0.5, math.nan], [0, 1, 0, 1], 0.5)
    with pytest.raises(ValueError, match=r"index 2: 1\.5"):
        classification_metrics([0.1, 0.2, 1.5], [0, 1, 0], 0.5)
    with pytest.raises(ValueError, match=r"1 of 2 scores .*index 0: -0\.5"):
        classification_metrics([-0.5, 0.5], [0, 1], 0.5)
    with pytest.raises(ValueError, match=r"\(2,\) and labels \(3,\)"):
        classification_metrics([0.1, 0.2], [0, 1, 0], 0.5)
    with pytest.raises(ValueError, match="index 1 is 2"):
        classification_metrics([0.1, 0.2], [0, 2], 0.5)
    with pytest.raises(ValueError, match="no functions"):
        classification_metrics([], [], 0.5)
    with pytest.raises(ValueError, match="finite"):
        classification_metrics(SCORES, LABELS, math.nan)


def quality(scores, labels, threshold):
    """The key by which a threshold is better: F1, then MCC, then closeness to 0.5."""
    answers = np.asarray(scores) >= threshold
    one_answer = answers.all() or not answers.any()
    mcc = 0.0 if one_answer else sk.matthews_corrcoef(labels, answers)
    return sk.f1_score(labels, answers), round(mcc, 12), -abs(threshold - 0.5)


@pytest.mark.parametrize("seed", range(10))
def test_best_threshold_equals_a_search_over_every_candidate(seed):
    generator = np.random.default_rng(seed)
    num = int(generator.integers(2, 30))
    labels = np.r_[0, 1, generator.integers(0, 2, num)]
    scores = np.round(generator.random(len(labels)), 1 if seed % 2 else 6)
    distinct = np.unique(scores)
    candidates = [0.0, *((distinct[1:] + distinct[:-1]) / 2)]
    found = best_threshold(scores, labels)
    assert found in candidates
    best = quality(scores, labels, found)
    assert best == max(quality(scores, labels, t) for t in candidates)
    # No other cut is better either, wherever it lies between the scores.
    for threshold in np.linspace(0, 1, 101):
        answers = scores >= threshold
        f1 = 2 * (answers & (labels == 1)).sum() / (answers.sum() + labels.sum())
        assert f1 <= best[0] + 1e-12  # rounding of one division


def test_equal_f1_goes_to_the_higher_correlation():
    # F1 is 2/3 for all four (MCC 0) and for the top one alone (MCC 1 / sqrt(3)).
    assert best_threshold([0.1, 0.2, 0.3, 0.9], [1, 0, 0, 1]) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.9, 0.8, 0.6, 0.55, 0.52, 0.51, 0.31, 0.1], 0.41),  # the cuts are 0.70 and 0.41
        ([0.9, 0.6, 0.5, 0.40, 0.35, 0.30, 0.20, 0.1], 0.55),  # the cuts are 0.55 and 0.25
    ],
)
def test_equal_f1_and_correlation_go_to_the_threshold_nearest_one_half(scores, expected):
    # The top two (tp 1) and the top six (tp 2) both have F1 = 1/2 and MCC = 4/12; no cut has more.
    labels = [0, 1, 0, 0, 0, 1, 0, 0]
    assert best_threshold(scores, labels) == pytest.approx(expected)


def test_everything_is_positive_when_that_is_best():
    threshold = best_threshold([0.9, 0.8, 0.2], [0, 1, 1])
    assert threshold == 0.0
    assert (
        classification_metrics([0.0], [1], threshold)["tp"] == 1
    )  # below all validation scores too


def test_a_cut_between_adjacent_floats_keeps_the_lower_one_negative():
    low = 0.7
    high = float(np.nextafter(low, 1))
    threshold = best_threshold([low, low, high], [0, 0, 1])
    assert classification_metrics([low, low, high], [0, 0, 1], threshold)["f1"] == 1.0


def test_a_hundred_thousand_functions_take_well_under_a_second():
    generator = np.random.default_rng(0)
    scores, labels = generator.random(100_000), generator.integers(0, 2, 100_000)
    start = time.process_time()
    best_threshold(scores, labels)
    # About 0.03 s; a quadratic search would take minutes.
    assert time.process_time() - start < 1.0


def test_importing_the_evaluation_loads_no_heavy_library():
    code = (
        "import sys, trainer.evaluation.functions.report\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert 'numpy' in sys.modules and not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def all_cuts(scores):
    distinct = np.unique(scores)
    return [0.0, *((distinct[1:] + distinct[:-1]) / 2), (distinct[-1] + 1) / 2]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "text",
    ["fpr=0.1", "fpr=0", "recall=0.8", "recall=1", "precision=0.75", "cost=10:1", "cost=1:4"],
)
def test_each_rule_equals_a_search_over_every_cut(seed, text):
    generator = np.random.default_rng(seed)
    labels = np.r_[0, 1, generator.integers(0, 2, 30)]
    scores = np.round(
        np.clip(generator.random(32) * 0.7 + 0.25 * labels, 0, 1), 1 if seed % 2 else 6
    )
    kind, value = text.split("=")
    found, is_kept = choose_threshold(scores, labels, ThresholdRule.of(text))

    def rates(cut):
        said = scores >= cut
        tp, fp = (said & (labels == 1)).sum(), (said & (labels == 0)).sum()
        return tp, fp, tp / labels.sum(), fp / (1 - labels).sum(), tp / max(1, tp + fp)

    tp, fp, recall, fpr, precision = rates(found)
    others = [rates(cut) for cut in all_cuts(scores)]
    if kind == "fpr":
        assert fpr <= float(value)
        assert tp == max(o[0] for o in others if o[3] <= float(value))
    elif kind == "recall":
        assert recall >= float(value)
        assert fp == min(o[1] for o in others if o[2] >= float(value))
    elif kind == "precision":
        best = max(o[4] for o in others)
        assert is_kept == (best >= float(value))
        assert precision >= min(best, float(value))
        if is_kept:
            assert tp == max(o[0] for o in others if o[4] >= float(value))
    else:
        missed, alarm = map(float, value.split(":"))
        cost = [missed * (labels.sum() - o[0]) + alarm * o[1] for o in others]
        assert missed * (labels.sum() - tp) + alarm * fp == min(cost)
    assert is_kept or kind == "precision"


def test_a_precision_out_of_reach_takes_the_highest_and_says_so():
    found, is_kept = choose_threshold([0.9, 0.8, 0.2], [0, 1, 0], ThresholdRule.of("precision=0.9"))
    assert (found, is_kept) == (0.5, False)  # one of two


def test_no_alarm_at_all_is_a_threshold_above_every_score():
    threshold, is_kept = choose_threshold([0.2, 1.0], [1, 0], ThresholdRule.of("fpr=0"))
    assert is_kept
    assert threshold > 1.0


def test_a_fixed_threshold_is_taken_as_it_is():
    assert choose_threshold([0.2, 0.9], [0, 1], ThresholdRule.of(0.3)) == (0.3, True)
    assert choose_threshold([0.2], [1], ThresholdRule.of("0.3")) == (0.3, True)


@pytest.mark.parametrize(
    "text", ["best", "fpr", "fpr=2", "fpr=x", "cost=1", "cost=0:1", "cost=1:0", "1.5", "nan", True]
)
def test_another_rule_is_refused_with_the_forms(text):
    with pytest.raises(ValueError, match=r"best_f1, fpr=0\.005, recall=0\.9"):
        ThresholdRule.of(text)


def test_recall_at_few_false_alarms_is_the_best_cut_by_hand():
    # 200 negatives: 1% is two of them, 0.5% one. Falling: P P N P N P N ...
    labels = np.r_[[1, 1, 0, 1, 0, 1, 0], np.zeros(197, int), [1]]
    scores = np.linspace(0.99, 0.01, len(labels))
    m = classification_metrics(scores, labels, 0.5)
    assert m["recall_at_1"] == pytest.approx(4 / 5)  # up to the third negative
    assert m["vd_s"] == pytest.approx(1 - 3 / 5)  # PrimeVul: missed, up to the second
    assert m["recall_at_5"] == pytest.approx(4 / 5)


def test_calibration_error_by_hand():
    # Tenths 0 and 9: means 0.05 and 0.95, shares 1/2 and 1: 2/4 * 0.45 + 2/4 * 0.05.
    m = classification_metrics([0.02, 0.08, 0.9, 1.0], [0, 1, 1, 1], 0.5)
    assert m["ece"] == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)


def test_the_temperature_is_the_one_that_made_the_scores():
    generator = np.random.default_rng(0)
    logits = 2 * generator.standard_normal(20_000)
    labels = (generator.random(20_000) < 1 / (1 + np.exp(-logits))).astype(int)
    sharp = 1 / (1 + np.exp(-3 * logits))  # three times too sure
    temperature = temperature_of(sharp, labels)
    # The standard error of a slope from 20,000 functions is near 2%; three of them.
    assert temperature == pytest.approx(3, rel=0.06)
    assert at_temperature(sharp, 3.0) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)
    grid = np.exp(np.linspace(-1, 2, 2001))
    losses = [sk.log_loss(labels, at_temperature(sharp, t)) for t in grid[::50]]
    assert sk.log_loss(labels, at_temperature(sharp, temperature)) <= min(losses) + 1e-9
    assert temperature_of([0.2, 0.9], [1, 1]) == 1.0
