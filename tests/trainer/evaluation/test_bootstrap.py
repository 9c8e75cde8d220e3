"""The resampled metrics equal scikit-learn's, and the intervals mean what they say."""

import math
import time

import numpy as np
import pytest
from sklearn import metrics as sk

from trainer.evaluation import resampling
from trainer.evaluation.bootstrap import Bootstrap
from trainer.evaluation.bootstrap import bootstrap as bootstrap_measures
from trainer.evaluation.measures import MEASURES
from trainer.evaluation.predictors import Scored
from trainer.evaluation.resampling import (
    USUAL_DRAWS,
    Ranking,
    Resampling,
    cluster_ids,
    f1_from_counts,
    mcc_from_counts,
    percentile_interval,
    resamples,
)


def bootstrap(labels, *scores, threshold=0.5, groups_N=None, **draws):
    labels = np.asarray(labels)
    predictors = {str(n): Scored(np.asarray(s), labels, threshold) for n, s in enumerate(scores)}
    clusters = cluster_ids(range(len(labels)) if groups_N is None else groups_N)
    return bootstrap_measures("functions", predictors, clusters, Resampling(**draws), labels)


def bootstrap_intervals(scores, labels, threshold, **options):
    return bootstrap(labels, scores, threshold=threshold, **options).intervals("0")


def sample(seed, num=80, decimals=1):
    generator = np.random.default_rng(seed)
    labels = np.r_[0, 1, generator.integers(0, 2, num - 2)]
    scores = np.clip(0.4 + 0.2 * labels + 0.2 * generator.standard_normal(num), 0, 1)
    return np.round(scores, decimals), labels


def recall_at(most_alarms, labels, scores):
    """The highest recall of any cut, one after the other, at a false positive rate."""
    cuts = [scores >= cut for cut in [*scores, 2.0]]
    rates = [((cut & (labels == 0)).sum(), (cut & (labels == 1)).sum()) for cut in cuts]
    allowed = [tp for fp, tp in rates if fp <= most_alarms * (labels == 0).sum()]
    return max(allowed) / labels.sum()


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_resampled_metrics_equal_scikit_learn_on_the_repeated_functions(decimals):
    scores, labels = sample(decimals, decimals=decimals)
    assert (len(np.unique(scores)) < len(scores)) == (decimals < 12)  # ties, and none
    weights, _ = next(resamples(np.arange(len(labels)), Resampling(50, 1), labels))
    answers = (scores >= 0.5).astype(float)
    tp, predicted = weights @ (answers * labels), weights @ answers
    positives, total = weights @ labels.astype(float), weights.sum(axis=1)
    ranked = Ranking(scores, labels).resampled(weights)
    ours = np.stack(
        [
            ranked.roc_auc(),
            ranked.average_precision(),
            ranked.recall_at(0.05),
            f1_from_counts(tp, predicted, positives),
            mcc_from_counts(tp, predicted, positives, total),
        ],
        axis=1,
    )
    for row, weight in zip(ours, weights, strict=True):
        drawn = np.repeat(np.arange(len(labels)), weight.astype(int))
        truth, score, answer = labels[drawn], scores[drawn], answers[drawn]
        assert 0 < len(np.unique(drawn)) < len(labels)  # a resample, not the sample
        reference = (
            sk.roc_auc_score(truth, score),
            sk.average_precision_score(truth, score),
            recall_at(0.05, truth, score),
            sk.f1_score(truth, answer),
            sk.matthews_corrcoef(truth, answer),
        )
        # Sums of at most 80 terms in [0, 1] in another order: rounding stays near 1e-15.
        assert row == pytest.approx(reference, abs=1e-12)


def test_equal_seeds_give_equal_intervals_whatever_the_chunk(monkeypatch):
    scores, labels = sample(0)
    first = bootstrap_intervals(scores, labels, 0.5, seed=3)
    assert bootstrap_intervals(scores, labels, 0.5, seed=3) == first
    assert bootstrap_intervals(scores, labels, 0.5, seed=4) != first
    monkeypatch.setattr(resampling, "MAX_CHUNK_ELEMENTS", 7 * len(labels))
    chunked = bootstrap_intervals(scores, labels, 0.5, seed=3)
    assert chunked.keys() == first.keys()
    for name, interval in first.items():  # a product of other shapes adds in another order
        assert chunked[name] == pytest.approx(interval, rel=1e-12), name


def test_the_percentiles_leave_half_of_the_rest_on_each_side():
    values = np.random.default_rng(0).permutation(1001) / 1000
    assert percentile_interval(values, 0.95) == pytest.approx((0.025, 0.975))
    assert percentile_interval(values, 0.5) == pytest.approx((0.25, 0.75))


def test_a_score_equal_to_the_threshold_is_positive_in_the_resamples_too():
    intervals = bootstrap_intervals([0.5, 0.5, 0.1, 0.2], [1, 1, 0, 0], 0.5)
    assert intervals["f1"] == intervals["mcc"] == [1.0, 1.0]


def test_a_cluster_is_drawn_whole():
    labels = np.array([0, 1, 0, 1, 1])
    clusters = cluster_ids(["a", "b", "a", "b", "c"])
    assert clusters.tolist() == [0, 1, 0, 1, 2]
    weights, _ = next(resamples(clusters, Resampling(200), labels))
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 3]).all()
    assert (weights[:, [0, 1, 4]].sum(axis=1) == 3).all()  # three clusters drawn each time
    assert len(np.unique(weights, axis=0)) > 3


def test_one_class_draws_are_redrawn_and_counted():
    # One positive of four: a draw misses it with probability (3/4)^4 = 0.316, takes it alone 0.004.
    result = bootstrap([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.9], num_resamples=2000)
    share = result.num_redrawn / (2000 + result.num_redrawn)
    # Standard error sqrt(0.32 * 0.68 / 2900) = 0.009; four of them.
    assert share == pytest.approx(0.75**4 + 0.25**4, abs=0.035)
    assert result.intervals("0")["roc_auc"] == [1.0, 1.0]


def test_no_interval_without_two_classes_and_two_clusters():
    nothing = Bootstrap({}, 0, 0.95)
    for one_class in ([1, 1], [0, 0]):
        assert bootstrap(one_class, [0.1, 0.9]) == nothing
    assert bootstrap([0, 1], [0.1, 0.9], groups_N=["c", "c"]) == nothing
    # Two clusters, and a function of each class: the least that can be resampled.
    assert bootstrap([0, 1], [0.1, 0.9]).intervals("0")["f1"] == [1.0, 1.0]


def test_one_resample_is_enough_and_needs_both_classes():
    scores, labels = sample(0)
    low, high = bootstrap_intervals(scores, labels, 0.5, num_resamples=1)["f1"]
    assert low == high
    for one_class in (np.zeros(2, int), np.ones(2, int)):
        with pytest.raises(AssertionError, match="needs both classes"):
            next(resamples(np.arange(2), Resampling(1), one_class))


def test_the_interval_covers_the_true_auc_about_95_times_in_100():
    # Scores N(0, 1) and N(1, 1): the true AUC is Phi(1 / sqrt(2)). The logistic keeps the order.
    true_auc = 0.5 * (1 + math.erf(0.5))
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 75)
    num_runs, num_covered = 200, 0
    for run in range(num_runs):
        logits = labels + generator.standard_normal(len(labels))
        scores = 1 / (1 + np.exp(-logits))
        low, high = bootstrap_intervals(scores, labels, 0.5, num_resamples=300, seed=run)["roc_auc"]
        num_covered += low <= true_auc <= high
    # Standard error sqrt(0.95 * 0.05 / 200) = 0.015; the percentile method is known to fall about
    # 0.01 short at this size. Three errors each way around 0.945.
    assert 0.90 <= num_covered / num_runs <= 0.99


def test_clusters_of_duplicates_widen_the_interval_by_the_root_of_two():
    scores, labels = sample(5, num=150, decimals=6)
    twice = np.repeat(scores, 2), np.repeat(labels, 2)
    alone = bootstrap_intervals(*twice, 0.5)
    together = bootstrap_intervals(*twice, 0.5, groups_N=np.repeat(np.arange(150), 2))
    for name in ("roc_auc", "pr_auc", "f1", "mcc"):
        ratio = np.ptp(together[name]) / np.ptp(alone[name])
        # 150 independent pairs count as 150, not 300: sqrt(2). Each width of a 95% interval from
        # 1000 resamples has a standard error near 4%, their ratio near 6%; three of them.
        assert ratio == pytest.approx(math.sqrt(2), rel=0.18)


def test_the_paired_interval_separates_what_separate_intervals_do_not():
    scores, labels = sample(7, num=300, decimals=6)
    generator = np.random.default_rng(8)
    worse = np.clip(scores + 0.12 * generator.standard_normal(300), 0, 1)
    result = bootstrap(labels, scores, worse)
    low, high = result.difference("roc_auc", "0", "1")
    found = sk.roc_auc_score(labels, scores) - sk.roc_auc_score(labels, worse)
    assert 0 < low < found < high
    ours, theirs = (result.intervals(name)["roc_auc"] for name in "01")
    assert theirs[1] > ours[0]  # apart they overlap


def test_a_predictor_does_not_differ_from_itself():
    scores, labels = sample(1)
    result = bootstrap(labels, scores, scores)
    assert result.difference("roc_auc", "0", "1") == [0, 0]
    assert len(result.values["0", "roc_auc"]) == 1000


def test_a_bootstrap_of_600_functions_takes_less_than_two_cpu_seconds():
    scores, labels = sample(2, num=600, decimals=6)
    start = time.process_time()
    bootstrap_intervals(scores, labels, 0.5, groups_N=np.arange(600) // 2)
    assert time.process_time() - start < 2.0


def test_average_precision_of_a_resample_without_the_best_function_by_hand():
    scores, labels = np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 1])
    weights_RN = np.array([[0, 1, 1, 2], [1, 1, 1, 1]], np.float32)
    # First: 0.9 is not drawn; at 0.5 one of two; at 0.1 three of four, of which two are new.
    # Second: 1 of 1, then 2 of 3, then 3 of 4.
    expected = [(1 * 1 / 2 + 2 * 3 / 4) / 3, (1 + 2 / 3 + 3 / 4) / 3]
    ranked = Ranking(scores, labels).resampled(weights_RN)
    assert ranked.average_precision() == pytest.approx(expected)


def test_a_constant_score_is_ranked_at_chance_in_every_resample():
    labels = np.array([0, 1, 1, 0, 0])
    weights_RN = np.array([[1, 1, 1, 1, 1], [3, 1, 0, 0, 1]], np.float32)
    ranked = Ranking(np.full(5, 0.3), labels).resampled(weights_RN)
    assert ranked.roc_auc().tolist() == [0.5, 0.5]
    assert ranked.average_precision() == pytest.approx([2 / 5, 1 / 5])
    assert ranked.recall_at(0.5).tolist() == [0, 0]  # everything, or nothing
    assert ranked.recall_at(1.0).tolist() == [1, 1]


def test_the_positives_of_a_part_are_ranked_against_all_negatives():
    scores, labels = sample(9, num=60)
    ranking = Ranking(scores, labels)
    part = np.flatnonzero(labels == 1)[::3]
    of_P = np.flatnonzero(np.isin(ranking.positive_P, part))
    chosen = np.r_[np.flatnonzero(labels == 0), part]
    found = ranking.resampled(np.ones((1, 60), np.float32)).roc_auc(of_P)
    assert found == pytest.approx([sk.roc_auc_score(labels[chosen], scores[chosen])])


def test_calibration_is_resampled_as_it_is_measured():
    scores, labels = sample(6, decimals=6)
    scored = Scored(scores, labels, 0.5)
    weights, _ = next(resamples(np.arange(len(labels)), Resampling(20, 1), labels))
    sums = scored.resampled(weights)
    for name in ("brier", "ece"):
        measure = MEASURES[name]
        drawn = [np.repeat(np.arange(len(labels)), row.astype(int)) for row in weights]
        expected = [measure.function(Scored(scores[d], labels[d], 0.5)) for d in drawn]
        assert measure.resampled(sums) == pytest.approx(expected, rel=1e-5)


def test_further_values_share_the_resamples_and_leave_out_where_they_are_undefined():
    scores, labels = sample(3, num=30)
    clusters = np.arange(30)
    seen = []

    def first_function(sums):
        seen.append(sums["0"].weights_RN)
        drawn_R = sums["0"].weights_RN[:, 0].astype(float)
        return np.where(drawn_R > 0, drawn_R, np.nan)

    more = {
        "first": first_function,
        "never": lambda sums: np.full(len(sums["0"].weights_RN), np.nan),
    }
    predictors = {"0": Scored(scores, labels, 0.5)}
    found = bootstrap_measures("functions", predictors, clusters, USUAL_DRAWS, labels, more)
    [weights_RN] = seen
    assert (next(resamples(clusters, USUAL_DRAWS, labels))[0] == weights_RN).all()
    drawn = weights_RN[:, 0][weights_RN[:, 0] > 0]
    assert found.more("first") == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    assert found.more("never") is None


def drawn_by_hand(labels, groups, num, seed):
    """Rows of every resample, one draw after the other, and how many of one class were left out."""
    members = [[n for n, g in enumerate(groups) if g == name] for name in dict.fromkeys(groups)]
    generator, kept, num_redrawn = np.random.default_rng(seed), [], 0
    while len(kept) < num:
        chosen = generator.integers(len(members), size=len(members))
        rows = [n for group in chosen for n in members[group]]
        if 0 < labels[rows].sum() < len(rows):
            kept.append(rows)
        else:
            num_redrawn += 1
    return kept, num_redrawn


def test_intervals_are_the_percentiles_of_a_plain_loop_over_clusters():
    scores, other = sample(3, num=9)[0], sample(4, num=9)[0]
    groups = ["b", "a", "b", "c", "a", "d", "d", "d", "e"]
    labels = np.array([int(group == "a") for group in groups])  # many a draw misses them
    kept, num_redrawn = drawn_by_hand(labels, groups, 60, seed=5)
    assert num_redrawn > 0
    by_hand = {
        "roc_auc": [sk.roc_auc_score(labels[rows], scores[rows]) for rows in kept],
        "f1": [sk.f1_score(labels[rows], scores[rows] >= 0.5) for rows in kept],
    }
    draws = {"num_resamples": 60, "seed": 5, "level": 0.9}
    found = bootstrap(labels, scores, other, groups_N=groups, **draws)
    assert found.num_redrawn == num_redrawn
    for name, values in by_hand.items():
        assert found.intervals("0")[name] == pytest.approx(np.quantile(values, [0.05, 0.95]))
    theirs = [sk.roc_auc_score(labels[rows], other[rows]) for rows in kept]
    differences = np.subtract(by_hand["roc_auc"], theirs)
    paired = found.difference("roc_auc", "0", "1")
    assert paired == pytest.approx(np.quantile(differences, [0.05, 0.95]))


def test_resamples_of_every_record_alone_are_those_of_a_plain_loop(monkeypatch):
    generator = np.random.default_rng(2)
    by_hand = [np.bincount(generator.integers(4, size=4), minlength=4) for _ in range(7)]
    for chunk in (2**21, 12, 1):  # all at once, three and one at a time
        monkeypatch.setattr(resampling, "MAX_CHUNK_ELEMENTS", chunk)
        parts = [weights for weights, _ in resamples(np.arange(4), Resampling(7, 2))]
        assert max(map(len, parts)) == min(7, max(1, chunk // 4))
        assert np.concatenate(parts).tolist() == np.array(by_hand).tolist()


def test_a_chunk_of_resamples_takes_16_mib_and_at_least_a_row(monkeypatch):
    labels, clusters = np.arange(100_000) % 2, np.arange(100_000)
    weights, num_redrawn = next(resamples(clusters, Resampling(50), labels))
    assert weights.shape == (16 * 2**20 // 4 // 100_000, 100_000)
    assert num_redrawn == 0
    monkeypatch.setattr(resampling, "MAX_CHUNK_ELEMENTS", 1)
    chunks = [weights for weights, _ in resamples(clusters[:9], Resampling(3), labels[:9])]
    assert [len(chunk) for chunk in chunks if len(chunk)] == [1, 1, 1]


def test_the_usual_draws_are_a_thousand_from_seed_0():
    generator = np.random.default_rng(0)
    by_hand = [np.bincount(generator.integers(3, size=3), minlength=3) for _ in range(1000)]
    ((weights, num_redrawn),) = resamples(np.arange(3), USUAL_DRAWS)
    assert (weights.tolist(), num_redrawn) == (np.array(by_hand).tolist(), 0)
