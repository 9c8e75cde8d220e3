"""The language report: intervals over records, and none where there are too few."""

import numpy as np
import pytest

from trainer.evaluation.language.report import (
    FEWEST_RECORDS,
    LanguageScores,
    write_language_report,
)
from trainer.evaluation.language.tokens import TokenSums


def scores(num_records: int, gain: float) -> LanguageScores:
    generator = np.random.default_rng(0)
    count_N = generator.integers(1, 50, num_records).astype(float)
    before_N = count_N * generator.uniform(2, 4, num_records)
    sums = [
        TokenSums(nll_N, count_N / 2, count_N) for nll_N in (before_N - gain * count_N, before_N)
    ]
    curves = {"train loss": [(1.0, 4.0), (2.0, 3.0)]}
    return LanguageScores(sums[0], sums[1], 5.0, {"a.json": 0}, [], curves)


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
