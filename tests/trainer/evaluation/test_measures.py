"""A measure is one entry of MEASURES: report, validation, best step and sweep follow it."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from example_sets import example_set
from sweep_cells import cells_of, write_cell

from data.config import DataConfig
from data.text.labels import Classes
from trainer.config.sections import LossSection
from trainer.evaluation.best_step import deciding_score
from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.evaluation import FunctionEvaluation
from trainer.evaluation.functions.predictions import Prediction
from trainer.evaluation.functions.report import write_function_report
from trainer.evaluation.functions.scores import of_functions, score_examples
from trainer.evaluation.language.report import LanguageScores, write_language_report
from trainer.evaluation.language.sums import TokenSums
from trainer.evaluation.measures import MEASURES, Measure, swept_measures
from trainer.evaluation.scoring import outputs, split_batches
from trainer.losses.tasks import Classification
from trainer.processes.distributed import Ranks
from trainer.sweep.findings import Comparison
from trainer.sweep.report import write_report as write_sweep_report
from trainer.sweep.results import read_result

LABELS, SCORES = [0, 0, 1, 1, 1], [0.1, 0.8, 0.4, 0.6, 0.9]
YOUDEN = 0.5 + 2 / 3 - 1  # one of two negatives and two of three positives are right
CONFIG = SimpleNamespace(
    data=DataConfig.model_construct(seq_length=8, packing=False, isolate=True),
    optim=SimpleNamespace(micro_rows=2),
    eval=SimpleNamespace(window_score="max", threshold="best_f1", metric="auto"),
    replication=SimpleNamespace(compat_population=False),
)


@pytest.fixture
def ranks():
    return Ranks(0, 0, 1, torch.device("cpu"))


class Scores(torch.nn.Module):
    """Logits of a batch that give the chosen P(vulnerable) of its examples."""

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.tensor(scores, dtype=torch.float64)

    def forward(self, batch):
        scores_S = self.scores[batch.example_S]
        return torch.stack([(1 - scores_S).log(), scores_S.log()], dim=1)


def youden(scored):
    positive = scored.labels_N == 1
    return float(np.mean(scored.predicted_N[positive]) - np.mean(scored.predicted_N[~positive]))


def test_a_measure_of_functions_reaches_report_and_validation(monkeypatch, tmp_path, ranks):
    monkeypatch.setitem(MEASURES, "youden", Measure(("functions",), "Youden's J", True, youden))
    rows = [
        Prediction(str(n), f"a.c:{n}", label, score, int(score >= 0.5), "", "", "read", 1)
        for n, (label, score) in enumerate(zip(LABELS, SCORES, strict=True))
    ]
    write_function_report(tmp_path, "test", rows, Decision(), {}, {})
    report = json.loads((tmp_path / "test.json").read_text())
    assert report["predictors"]["model"]["metrics"]["youden"] == pytest.approx(YOUDEN)
    page = (tmp_path / "test.md").read_text()
    assert "| Predictor | ROC AUC | PR AUC | F1 | MCC | Youden's J |" in page
    assert f" {YOUDEN:.3f} |\n" in page

    logged = []
    examples = example_set([[n + 1, 2] for n in range(5)], labels=LABELS)
    valid = SimpleNamespace(examples=examples, targets=LABELS, folder=Path("valid"))
    prepared = SimpleNamespace(
        splits={"train": valid, "valid": valid}, classes=Classes(), prior_C=np.array([0.4, 0.6])
    )
    log = SimpleNamespace(validation=logged.append, pr_curve=lambda *_: None)
    task = Classification(LossSection(), ranks.device)
    evaluation = FunctionEvaluation(CONFIG, prepared, ranks, Scores(SCORES), log, task)
    auc_chosen = evaluation.validate(3)
    [row] = logged
    shown = ["step", "roc_auc", "pr_auc", "f1", "mcc", "youden", "loss", "threshold"]
    assert list(row) == shown
    right = np.where(np.array(LABELS) == 1, SCORES, 1 - np.array(SCORES))
    assert row["loss"] == pytest.approx(-np.log(right).mean())
    assert auc_chosen.score == row["roc_auc"] == pytest.approx(4 / 6)

    for name, decides in (("roc_auc", False), ("youden", True)):
        monkeypatch.setitem(MEASURES, name, replace(MEASURES[name], decides=decides))
    assert evaluation.validate(4).score == logged[1]["youden"] != row["roc_auc"]


def test_a_measure_where_less_is_better_chooses_the_lowest():
    values = {"loss": 2.5, "perplexity": 12.0, "token_accuracy": 0.4}
    assert deciding_score("tokens", values, "auto") == -2.5
    assert deciding_score("functions", {"roc_auc": 0.7}, "auto") == 0.7
    assert deciding_score("functions", {"roc_auc": None}, "auto") is None


def test_a_measure_of_tokens_reaches_report_and_sweep(monkeypatch, base, tmp_path):
    bits = Measure(
        ("tokens",), "bits a token", False, lambda sums: sums.loss / np.log(2), swept=True
    )
    monkeypatch.setitem(MEASURES, "bits", bits)
    sums = TokenSums(np.array([2.0, 4.0]), np.array([1.0, 1.0]), np.array([2.0, 2.0]))
    scores = LanguageScores(["a", "b"], ["", ""], sums, None, 5.0, {"a.json": 0}, [], {})
    report = write_language_report(tmp_path, "test", scores, {})
    assert report["predictors"]["model"]["bits"] == pytest.approx(1.5 / np.log(2))
    assert "| Bits a token |\n" in (tmp_path / "test.md").read_text()
    assert "| 2.164 |\n" in (tmp_path / "test.md").read_text()

    _, cells = cells_of(base, tmp_path / "grid", ("full", "lora"), (), 1)
    for place, cell in enumerate(cells):
        write_cell(cell, 2.0)
        path = cell.config.output_dir / "report" / "test.json"
        values = json.loads(path.read_text())
        values["predictors"]["model"]["bits"] = 3.25 + place
        path.write_text(json.dumps(values))
    results = tuple(read_result(cell) for cell in cells)
    compared = Comparison(results, swept_measures("tokens"))
    text = write_sweep_report(tmp_path / "sweep", compared).read_text()
    assert "| Test loss | Token accuracy | Bits a token | Seconds |" in text
    assert "| 0.5000 | 4.2500 | 10.0 |" in text
    with (tmp_path / "sweep" / "report.csv").open() as file:
        assert [row["bits"] for row in csv.DictReader(file)] == ["3.25", "4.25"]


def test_a_function_scored_exactly_0_keeps_its_score_and_is_not_given_the_prior(ranks):
    examples = example_set([[1, 2], [3, 4], [5, 6]])
    batches = split_batches(examples, CONFIG.data, 2, ranks)
    found = outputs(Scores([0.0, 0.25, 1.0]), batches)
    scores_EC = score_examples(found, len(examples), Classes(), ranks)
    scores = of_functions(scores_EC, examples, np.array([0.3, 0.7]), "max")
    assert scores[:, 1].tolist() == [0.0, 0.25, 1.0]
