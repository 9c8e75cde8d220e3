"""Answers to many prompts are the same on any number of ranks."""

import json

from rank_pool import run_ranks
from written_texts import DRAWN, on_a_rank, written


def test_samples_are_the_same_on_one_and_two_ranks_and_on_both(tmp_path):
    for num in (1, 2):
        printed = tmp_path / f"{num}.txt"
        codes = run_ranks([str(tmp_path)], num, printed, entry=on_a_rank)
        assert codes == [0] * num, printed.read_text()[-3000:]
    texts = [(tmp_path / name).read_text() for name in ("1-0.json", "2-0.json", "2-1.json")]
    assert texts[0] == texts[1] == texts[2]
    assert json.loads(texts[0]) == written(tmp_path, DRAWN)
