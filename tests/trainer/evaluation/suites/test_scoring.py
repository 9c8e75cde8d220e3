"""pass@k against every subset of the outputs; what is left out of it."""

import itertools
import statistics

import pytest

from trainer.evaluation.suites.scoring import pass_at_k, program_summary
from trainer.evaluation.suites.suite import Item, Judged


@pytest.mark.parametrize(("num", "passed"), [(1, 0), (1, 1), (5, 2), (6, 1), (6, 6), (20, 3)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_pass(num, passed):
    outputs = [True] * passed + [False] * (num - passed)
    for k in range(1, min(num, 4) + 1):
        share = statistics.mean(any(s) for s in itertools.combinations(outputs, k))
        assert pass_at_k(num, passed, k) == pytest.approx(share, abs=1e-12)


def test_what_could_not_be_judged_is_left_out_and_counted():
    def item(*verdicts):
        return Item("", {}, 0), [Judged(verdict) for verdict in verdicts]

    results = [
        item("pass", "fail"), item("timeout", "fail"), item("fail", "fail"),
        item("pass", "error"), item("not measured", "not measured"),
    ]  # fmt: skip
    found = program_summary(results)
    assert found["left_out"] == 2
    assert found["measures"].keys() == {"pass@1"}
    assert found["measures"]["pass@1"]["value"] == pytest.approx(100 / 6)  # (1/2 + 0 + 0) / 3
    low, high = found["measures"]["pass@1"]["interval"]
    assert 0 <= low < 100 / 6 < high <= 50
    assert found["counts"] == {
        "error": 1, "fail": 4, "not measured": 2, "pass": 2, "timeout": 1
    }  # fmt: skip


def test_k_is_1_10_and_100_where_every_item_has_so_many_outputs():
    def keys(*numbers):
        results = [(Item("", {}, 0), [Judged("pass")] * number) for number in numbers]
        return list(program_summary(results)["measures"])

    assert keys(9, 9) == ["pass@1"]
    assert keys(10, 99) == ["pass@1", "pass@10"]
    assert keys(100, 100) == ["pass@1", "pass@10", "pass@100"]
