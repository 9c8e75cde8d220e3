"""The arithmetic of benchmarks/communication.py and scaling.py, by hand."""

from benchmarks.communication import sent_by_a_rank
from benchmarks.scaling import Line, last_that_pays


def test_what_a_rank_sends_is_that_of_rings():
    """4 ranks: 2 x 3/4 of 1,000 all-reduced twice, 3/4 of 4 x 100 gathered, 3/4 of 400 cut."""
    messages = {
        "all_reduce": {"1000": 2},
        "all_gather_into_tensor": {"100": 1},
        "reduce_scatter_tensor": {"400": 1},
    }
    assert sent_by_a_rank(messages, 4) == 3000 + 300 + 300
    assert sent_by_a_rank(messages, 1) == 0


def test_gpus_stop_paying_where_a_doubling_brings_less_than_half_more():
    def line(gpus, seconds):
        return Line(gpus, 0.0, True, 0.0, seconds)

    assert last_that_pays([line(1, 8.0), line(2, 4.0), line(4, 2.7), line(8, 1.0)]) == 2
    assert last_that_pays([line(1, 8.0), line(2, 4.0), line(4, 2.0)]) == 4
