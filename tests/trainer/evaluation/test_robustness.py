"""What is measured before and after transformations, and of pairs."""

import random

import numpy as np
import pytest

from data.text.labels import Classes
from trainer.evaluation.decision import Decision
from trainer.evaluation.predictors import Scored
from trainer.evaluation.robustness.measures import (
    answers,
    edit_distance,
    pair_facts,
    shift_facts,
)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a = b;", "a  =\nb;", 0.0),
        ("a = b;", "a = c;", 1 / 4),
        ("f(a, b);", "f(a);", 2 / 7),
        ("if (n < 8) f(n);", "f(n);", 6 / 11),
        ("a", "b c", 1.0),
        ("", "", 0.0),
    ],
)
def test_the_distance_of_texts_counts_words_by_hand(one, other, expected):
    assert edit_distance(one, other) == edit_distance(other, one) == pytest.approx(expected)


def test_the_distance_is_that_of_the_plain_algorithm():
    draw = random.Random(0)
    for _ in range(60):
        one, other = (draw.choices("abc;", k=draw.randrange(12)) for _ in "12")
        row = list(range(len(other) + 1))
        for i, a in enumerate(one, 1):
            row, before = [i], row
            for j, b in enumerate(other, 1):
                row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
        expected = row[-1] / max(len(one), len(other), 1)
        assert edit_distance(" ".join(one), " ".join(other)) == pytest.approx(expected)


def test_answers_are_alarms_the_highest_class_or_every_class_at_its_threshold():
    scores = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3]])
    score, answer = answers(scores[:, 1:], Classes(), Decision(0.3))
    assert score.tolist() == [0.1, 0.3]
    assert answer.tolist() == [[False], [True]]
    score, answer = answers(scores, Classes(("a", "b", "c")), Decision())
    assert score == pytest.approx([0.3, 0.7])
    assert answer.tolist() == [[True, False, False], [False, True, False]]
    several = Classes(("a", "b", "c"), sets=((), (0,)))
    score, answer = answers(scores, several, Decision(thresholds=(0.3, 0.5, 0.2)))
    assert score.tolist() == [0.7, 0.4]
    assert answer.tolist() == [[True, False, False], [True, False, True]]


def test_shifts_are_those_by_hand_and_their_intervals_those_of_a_plain_loop():
    draw = np.random.default_rng(1)
    labels, groups = draw.integers(2, size=40), draw.integers(12, size=40)
    before = Scored(draw.random(40), labels, 0.5)
    after = Scored(np.clip(before.scores_N + draw.normal(0, 0.3, 40), 0, 1), labels, 0.5)
    flips = before.predicted_N != after.predicted_N
    facts = shift_facts(before, after, flips, groups.tolist())
    shift = after.scores_N - before.scores_N
    assert facts["mean_absolute_shift"] == pytest.approx(sum(map(abs, shift)) / 40)
    assert facts["largest_shift"] == pytest.approx(max(map(abs, shift)))
    assert facts["flip_rate"] == flips.sum() / 40

    def auc(scores, places):
        pairs = [
            (scores[p] > scores[n]) + (scores[p] == scores[n]) / 2
            for p in places if labels[p] for n in places if not labels[n]
        ]  # fmt: skip
        return sum(pairs) / len(pairs)

    assert facts["auc_before"] == pytest.approx(auc(before.scores_N, range(40)))
    assert facts["auc_after"] == pytest.approx(auc(after.scores_N, range(40)))
    assert facts["auc_difference"] == facts["auc_after"] - facts["auc_before"]
    members = [np.flatnonzero(groups == group).tolist() for group in np.unique(groups)]
    rates, differences = [], []
    while len(rates) < 250:
        places = [p for g in draw.integers(len(members), size=len(members)) for p in members[g]]
        if len({labels[p] for p in places}) == 2:
            rates.append(flips[places].mean())
            differences.append(auc(after.scores_N, places) - auc(before.scores_N, places))
    # Both are of random resamples: ends of 95% of 250 differ by a few hundredths.
    assert facts["flip_interval"] == pytest.approx(np.quantile(rates, [0.025, 0.975]), abs=0.05)
    ends = np.quantile(differences, [0.025, 0.975])
    assert facts["auc_interval"] == pytest.approx(ends, abs=0.05)


def test_what_stays_has_no_shift_and_one_class_or_group_or_no_function_no_interval():
    scored = Scored(np.array([0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 0, 1]), 0.5)
    none = np.zeros(4, bool)
    facts = shift_facts(scored, scored, none, [1, 2, 3, 4])
    assert facts["auc_interval"] == facts["flip_interval"] == [0.0, 0.0]
    assert facts["largest_shift"] == 0
    assert shift_facts(scored, scored, none, [1] * 4)["auc_interval"] is None
    one = Scored(scored.scores_N, np.ones(4, np.int64), 0.5)
    facts = shift_facts(one, one, none, [1, 2, 3, 4])
    assert facts["auc_before"] is facts["auc_interval"] is None
    assert facts["flip_interval"] == [0.0, 0.0]
    empty = Scored(np.zeros(0), np.zeros(0, np.int64), 0.5)
    assert shift_facts(empty, empty, none[:0], []) == {}


def test_scores_of_pairs_follow_the_text_or_the_fix():
    """Scores that move with the distance, either way, against scores that know the flaw."""
    draw = np.random.default_rng(2)
    distance, side = draw.random(60), draw.choice([-1, 1], 60)
    text = np.stack([0.5 + side * distance / 3, np.full(60, 0.5)], axis=1)
    facts = pair_facts(text, distance, list(range(60)))
    assert facts["spearman"] == pytest.approx(1.0)
    assert facts["spearman_interval"] == pytest.approx([1.0, 1.0])
    assert facts["auc"] == (side > 0).mean()
    assert facts["auc_interval"][0] < 0.5 < facts["auc_interval"][1]
    knows = np.stack([0.6 + draw.random(60) / 9, np.full(60, 0.5)], axis=1)
    facts = pair_facts(knows, distance, list(range(60)))
    assert facts["spearman_interval"][0] < 0 < facts["spearman_interval"][1]
    assert (facts["auc"], facts["auc_interval"]) == (1.0, [1.0, 1.0])
    assert pair_facts(np.full((3, 2), 0.5), distance[:3], [1, 2, 3])["spearman"] is None
