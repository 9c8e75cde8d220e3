"""The language report: intervals over records, and none where there are too few."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.prepared.prepare import Split
from data.text.tokenization import ExampleSet
from trainer.evaluation.language.evaluation import sampled
from trainer.evaluation.language.report import (
    FEWEST_RECORDS,
    LanguageScores,
    write_language_report,
)
from trainer.evaluation.language.sums import TokenSums


def scores(num_records: int, gain: float) -> LanguageScores:
    generator = np.random.default_rng(0)
    count_N = generator.integers(1, 50, num_records).astype(float)
    before_N = count_N * generator.uniform(2, 4, num_records)
    sums = [
        TokenSums(nll_N, count_N / 2, count_N) for nll_N in (before_N - gain * count_N, before_N)
    ]
    curves = {"train loss": [(1.0, 4.0), (2.0, 3.0)]}
    ids = [f"text {number}" for number in range(num_records)]
    return LanguageScores(ids, ids, sums[0], sums[1], 5.0, {"a.json": 0}, [], curves)


def test_losses_differ_by_the_gain_and_the_interval_holds_it(tmp_path):
    report = write_language_report(tmp_path, "test", scores(200, 0.25), {"step": 3})
    model, before = (report["predictors"][name] for name in ("model", "before training"))
    assert before["loss"] - model["loss"] == pytest.approx(0.25)
    low, high = report["comparison"]["interval"]
    assert (low, high) == (pytest.approx(-0.25), pytest.approx(-0.25))  # equal for every record
    assert report["comparison"]["verdict"].startswith("better")
    low, high = model["interval"]
    assert low < model["loss"] < high
    # The standard error of a ratio of sums over 200 records, by the delta method.
    sums = scores(200, 0.25).model
    residual_N = sums.nll_N - sums.loss * sums.count_N
    error = np.sqrt((residual_N**2).sum()) / sums.count_N.sum()
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.1)


def test_few_records_give_no_interval_and_no_verdict(tmp_path):
    report = write_language_report(tmp_path, "test", scores(FEWEST_RECORDS - 1, 0.25), {})
    assert report["comparison"] is None
    assert report["predictors"]["model"]["interval"] is None
    assert f"Fewer than {FEWEST_RECORDS} records" in (tmp_path / "test.md").read_text()
    enough = write_language_report(tmp_path, "test", scores(FEWEST_RECORDS, 0.25), {})
    assert enough["comparison"] is not None


def test_a_sample_scored_before_training_is_compared_on_its_own_records(tmp_path):
    whole, places = scores(200, 0.25), np.arange(0, 200, 4)
    generator = np.random.default_rng(1)
    model = replace(whole.model, nll_N=whole.model.nll_N * generator.uniform(0.5, 1, 200))
    before = TokenSums(*(np.zeros(200) for _ in range(3)))
    for name, sums_N in vars(whole.before).items():
        getattr(before, name)[places] = sums_N[places]
    report = write_language_report(tmp_path, "test", replace(whole, model=model, before=before), {})
    count = model.count_N[places].sum()
    difference = (model.nll_N[places].sum() - whole.before.nll_N[places].sum()) / count
    assert report["comparison"]["loss_difference"] == pytest.approx(difference)
    low, high = report["comparison"]["interval"]
    assert low < difference < high
    assert report["predictors"]["model"]["loss"] == model.loss  # of all records
    assert report["predictors"]["before training"]["loss"] == pytest.approx(
        whole.before.nll_N[places].sum() / count
    )
    assert (
        "of the 50 records that were scored before training" in (tmp_path / "test.md").read_text()
    )


def test_a_sample_holds_whole_records_and_is_always_the_same():
    record_E = np.repeat([0, 1, 3, 4, 6, 7], [1, 3, 2, 1, 1, 2])  # 2 and 5 were dropped
    starts = np.arange(len(record_E) + 1) * 2
    examples = ExampleSet(
        np.arange(2 * len(record_E)), starts, record_E, np.zeros(len(record_E), np.int8),
        np.ones(len(record_E)), np.ones(len(record_E), np.float32), 8,
        np.ones(2 * len(record_E), bool),
    )  # fmt: skip
    split = Split(None, examples, None, Path())
    found = sampled(split, 3).examples
    assert len(set(found.record_E.tolist())) == 3
    assert found.record_E.tolist() == [r for r in record_E if r in found.record_E]
    assert found.num_records == 8
    assert sampled(split, 3).examples.record_E.tolist() == found.record_E.tolist()
    assert sampled(split, 6) is sampled(split, "all") is split
