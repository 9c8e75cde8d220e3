"""Windows make one score of a function; a function is left out only if the recipe says so."""

import json

import numpy as np
import pytest
from example_sets import example_set
from rank_pool import run_ranks

from trainer.evaluation.functions.scores import of_functions, population

# Functions 0 and 2 have windows, function 1 was dropped.
WINDOWS = example_set([[1], [1, 2], [3, 4], [5], [6]], records=[0, 0, 2, 2, 2])
SCORES_E = np.array([0.2, 0.6, 0.9, 0.3, 0.3])


@pytest.mark.parametrize(("window_score", "expected"), [("max", [0.6, 0.9]), ("mean", [0.4, 0.5])])
def test_windows_give_their_highest_or_mean_score_and_a_dropped_function_the_prior(
    window_score, expected
):
    examples = WINDOWS.__class__(**{**vars(WINDOWS), "num_records": 3})
    scores_EC, prior_C = np.stack([1 - SCORES_E, SCORES_E], 1), np.array([0.75, 0.25])
    scores = of_functions(scores_EC, examples, prior_C, window_score)
    assert scores[:, 1] == pytest.approx([expected[0], 0.25, expected[1]])
    assert population(examples, compat=False).tolist() == [0, 1, 2]
    assert population(examples, compat=True).tolist() == [0, 2]


def test_a_compat_population_leaves_dropped_functions_out_of_the_report_and_says_so(
    tiny_recipe, tmp_path
):
    populations, by_prior = {}, {}
    for compat in (False, True):
        folder = tmp_path / str(compat)
        command = [
            str(tiny_recipe), f"run.output_dir={folder}", "data.seq_length=128", "save.interval=8",
            "data.long_functions=drop", f"replication.compat_population={str(compat).lower()}",
        ]  # fmt: skip
        assert run_ranks(command, 1, tmp_path / "printed.txt") == [0]
        report = json.loads((folder / "report" / "test.json").read_text())
        populations[compat] = report["population"]["num"]
        assert report["facts"]["compat_population"] is compat
        left_out = report["facts"]["num_left_out"]
        assert left_out == 20 - populations[compat]
        by_prior[compat] = report["population"]["num_scored_by_prior"]
        lines = (folder / "report" / "predictions.jsonl").read_text().splitlines()
        assert len(lines) == populations[compat]
        assert ("left out" in (folder / "report" / "test.md").read_text()) is compat
    assert populations[False] == 20
    assert 0 < populations[True] < 20
    assert by_prior == {False: 20 - populations[True], True: 0}
