"""Methods against LoRA: differences of means over seeds, with paired intervals by counted pairs."""

import numpy as np
import pytest
from function_runs import LABELS, run, scores_of
from sklearn.metrics import roc_auc_score

from trainer.evaluation.resampling import USUAL_DRAWS, percentile_interval, resamples
from trainer.sweep.grid import expand
from trainer.sweep.paired import pair_methods, reference_of

STRENGTH = {"ia3": 0.1, "lora": 0.3}


@pytest.fixture
def cells(base, tmp_path, monkeypatch):
    """Two methods of two seeds, and one of a single seed that LoRA lacks."""
    monkeypatch.setattr("trainer.evaluation.figures.svg", lambda _: b"")
    keys = (f"run.output_dir={tmp_path}", "data.packing=false")
    _, every = expand(base, keys, ("ia3", "lora", "ln_tuning"), (), (0, 1, 2))
    kept = [cell for cell in every if (cell.seed == 2) == (cell.method == "ln_tuning")]
    for cell in kept:
        scores = scores_of(10 * cell.seed + len(cell.method), STRENGTH.get(cell.method, 0.2))
        own = [one for one in cell.overrides if not one.startswith("run.output_dir=")]
        run(base, cell.config.output_dir, scores, *own)
    return kept


def test_a_difference_is_that_of_the_means_over_seeds_in_every_resample(cells):
    [(model, found)] = pair_methods(cells, ["roc_auc", "loss"]).items()
    assert (model, found.reference, found.why_not) == (cells[0].model, "lora", "")
    scores = {
        method: [scores_of(10 * seed + len(method), STRENGTH[method]) for seed in (0, 1)]
        for method in ("ia3", "lora")
    }

    def auc(method, drawn_RN):
        """Mean over seeds: the pairs in order, by how often both functions are drawn."""
        is_one_N = np.array(LABELS) == 1
        ones_RP, zeros_RM = drawn_RN[:, is_one_N], drawn_RN[:, ~is_one_N]
        found = []
        for one in map(np.array, scores[method]):
            above_PM = np.sign(one[is_one_N][:, None] - one[~is_one_N]) / 2 + 0.5
            wins_R = (ones_RP @ above_PM * zeros_RM).sum(1)
            found.append(wins_R / ones_RP.sum(1) / zeros_RM.sum(1))
        return np.mean(found, axis=0)

    commits = np.arange(len(LABELS)) // 2
    drawn = np.concatenate([part for part, _ in resamples(commits, USUAL_DRAWS, LABELS)])
    values = {method: auc(method, drawn.astype(float)) for method in scores}
    difference, interval = found.differences["ia3", "roc_auc"]
    means = [np.mean([roc_auc_score(LABELS, s) for s in scores[m]]) for m in ("ia3", "lora")]
    assert difference == pytest.approx(means[0] - means[1])
    assert difference < -0.05  # the weaker scores
    by_pairs = values["ia3"] - values["lora"]
    assert interval == pytest.approx(percentile_interval(by_pairs, 0.95))
    assert found.intervals["lora", "roc_auc"] == pytest.approx(
        percentile_interval(values["lora"], 0.95)
    )


def test_a_method_without_a_seed_of_the_reference_has_an_interval_and_no_difference(cells):
    [found] = pair_methods(cells, ["roc_auc"]).values()
    assert ("ln_tuning", "roc_auc") in found.intervals
    assert {method for method, _ in found.differences} == {"ia3"}


def test_a_cell_without_predictions_leaves_its_model_out_and_is_named(cells):
    name = next(cells[1].config.output_dir.glob("report/*.jsonl"))
    name.unlink()
    [found] = pair_methods(cells, ["roc_auc"]).values()
    assert (found.intervals, found.differences) == ({}, {})
    assert cells[1].config.output_dir.name in found.why_not


def test_methods_are_compared_with_lora_or_else_with_the_first():
    assert reference_of(["oft", "lora tuning.lora_r=4", "lora tuning.lora_r=8"]).endswith("_r=4")
    assert reference_of(["oft", "loha"]) == "oft"
