"""The report of a classifier: metrics with intervals, its baselines, and every prediction.

Shapes: N functions, in the order of the predictions.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.text.labels import Classes
from trainer.evaluation.bootstrap import Bootstrap, bootstrap
from trainer.evaluation.figures import pr_png, roc_png
from trainer.evaluation.functions.baselines import TFIDF_LOGISTIC, Baseline
from trainer.evaluation.functions.metrics import classification_metrics
from trainer.evaluation.measures import MEASURES, Scored
from trainer.evaluation.report import MODEL, file_names, predictions_name, write_report
from trainer.evaluation.resampling import (
    USUAL_DRAWS,
    Resampling,
    cluster_ids,
    weighted_roc_auc,
)

SHORT_NAMES = Classes().shown
DROPPED = "dropped: scored by the prior"
_PAGE = Path(__file__).with_name("report.md.jinja")


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one function.

    Attributes:
        origin: file:line.
        label, predicted: 0 or 1.
        score: P(class 1).
        group: Its commit; empty: a group of its own.
        cwe: May be empty.
        note: Begins with DROPPED if the model never saw the function.
        digest: From `text_digest`, of its text.
    """

    id: str
    origin: str
    label: int
    score: float
    predicted: int
    group: str
    cwe: str
    status: str
    num_tokens: int
    note: str = ""
    digest: str = ""


def write_function_report(
    folder: Path,
    name: str,
    predictions: Sequence[Prediction],
    threshold: float,
    baselines: Mapping[str, Baseline],
    facts: Mapping[str, Any],
    draws: Resampling = USUAL_DRAWS,
    names: Sequence[str] = SHORT_NAMES,
) -> dict[str, Any]:
    """Measure the predictions; write <name>.json, .md, _roc.png, _pr.png and predictions.

    Args:
        folder: Receives the files; created when absent.
        name: The split's, in letters, digits, "-" and "_". Predictions are in predictions.jsonl for
            "test", in <name>_predictions.jsonl for other splits.
        predictions: One for each function of the split.
        threshold: The model predicts 1 at a score >= threshold; chosen on validation.
        baselines: Name -> scores in the order of `predictions`. The one named TFIDF_LOGISTIC is
            compared with the model, function by function.
        facts: What the reader needs to repeat the run: recipe, step, digests.
        draws: How the bootstrap of the intervals draws.
        names: Of the classes 0 and 1.

    Returns:
        The content of <name>.json.

    Raises:
        ValueError: A bad name, score or label, a `predicted` that contradicts the threshold, or a
            baseline with the wrong number of scores.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"split name {name!r} names files; use letters, digits, '-' and '_'")
    _check_predicted(predictions, threshold)
    labels_N = np.array([p.label for p in predictions], dtype=np.int64)
    model = Baseline(np.array([p.score for p in predictions], dtype=np.float64), threshold)
    predictors = {
        key: Scored(p.scores_N, labels_N, p.threshold)
        for key, p in {MODEL: model, **baselines}.items()
    }
    report = {
        "split": name,
        "threshold": threshold,
        "threshold_source": "highest F1 on validation",
        **_measure(name, predictions, predictors, draws),
        "facts": dict(facts),
        "files": file_names(name, "roc", "pr", predictions=predictions_name(name)),
    }
    if names != SHORT_NAMES:
        report["classes"] = list(names)
    lines = [json.dumps(asdict(p), ensure_ascii=False, allow_nan=False) for p in predictions]
    contents: dict[str, bytes | str] = {"predictions": "".join(f"{line}\n" for line in lines)}
    write_report(folder, report, _PAGE, {**contents, **_figures(report, predictors)})
    return report


def _measure(
    name: str,
    predictions: Sequence[Prediction],
    predictors: Mapping[str, Scored],
    draws: Resampling,
) -> dict[str, Any]:
    metrics = {
        key: classification_metrics(p.scores_N, p.labels_N, p.threshold)
        for key, p in predictors.items()
    }
    # A function without a commit is its own group: its index never equals a commit, which is text.
    cluster_N = cluster_ids([p.group or i for i, p in enumerate(predictions)])
    labels_N, num_clusters = predictors[MODEL].labels_N, int(cluster_N.max()) + 1
    drawn = bootstrap("functions", predictors, cluster_N, draws, labels_N)
    return {
        "population": {
            "num": len(predictions),
            "num_positive": int(labels_N.sum()),
            "num_groups": num_clusters,
            "num_scored_by_prior": sum(p.note.startswith(DROPPED) for p in predictions),
            "by_status": dict(sorted(Counter(p.status for p in predictions).items())),
        },
        "bootstrap": asdict(draws)
        | {"num_clusters": num_clusters, "num_redrawn": drawn.num_redrawn},
        "predictors": {
            key: {"metrics": metrics[key], "intervals": drawn.intervals(key)} for key in predictors
        },
        "comparison": _compare(name, predictors, drawn),
        "by_cwe": _by_cwe(predictions),
    }


def _compare(
    name: str, predictors: Mapping[str, Scored], drawn: Bootstrap
) -> dict[str, Any] | None:
    """The model's ROC AUC minus the word counts' ROC AUC, on the same resamples."""
    if TFIDF_LOGISTIC not in predictors or not drawn.values:
        return None
    whole_1N = np.ones((1, len(predictors[MODEL].labels_N)))
    auc, their_auc = (
        weighted_roc_auc(predictors[key].scores_N, predictors[key].labels_N, whole_1N)[0]
        for key in (MODEL, TFIDF_LOGISTIC)
    )
    interval = drawn.difference("roc_auc", MODEL, TFIDF_LOGISTIC)
    (low, high), (their_low, their_high) = (
        drawn.intervals(key)["roc_auc"] for key in (MODEL, TFIDF_LOGISTIC)
    )
    verdict = MEASURES["roc_auc"].verdict(interval)
    return {
        "baseline": TFIDF_LOGISTIC,
        "auc_difference": float(auc - their_auc),
        "interval": interval,
        "separate_intervals_overlap": low <= their_high and their_low <= high,
        "verdict": f"{verdict} the word-count baseline on this {name} set",
    }


def _by_cwe(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    by_cwe: dict[str, list[Prediction]] = {}
    for p in predictions:
        by_cwe.setdefault(p.cwe, []).append(p)
    rows = [{"cwe": cwe, **_counts(members)} for cwe, members in by_cwe.items()]
    return sorted(rows, key=lambda row: (-row["num_positive"], -row["num"], row["cwe"]))


def _counts(members: Sequence[Prediction]) -> dict[str, Any]:
    num_positive, num_predicted = sum(p.label for p in members), sum(p.predicted for p in members)
    tp = sum(p.label & p.predicted for p in members)
    # Without negatives there are no false alarms: precision would always be 1.
    has_both = 0 < num_positive < len(members)
    return {
        "num": len(members),
        "num_positive": num_positive,
        "num_predicted": num_predicted,
        "tp": tp,
        "recall": tp / num_positive if num_positive else None,
        "precision": (tp / num_predicted if num_predicted else 0.0) if has_both else None,
        "f1": 2 * tp / (num_positive + num_predicted) if has_both else None,
    }


def _check_predicted(predictions: Sequence[Prediction], threshold: float) -> None:
    for p in predictions:
        if p.predicted != int(p.score >= threshold):
            raise ValueError(
                f"{p.id} ({p.origin}) has predicted={p.predicted} but score {p.score} at threshold "
                f"{threshold}; predicted must be 1 exactly when score >= threshold"
            )


def _figures(report: Mapping[str, Any], predictors: Mapping[str, Scored]) -> dict[str, bytes]:
    labels_N, name = predictors[MODEL].labels_N, report["split"]
    curves: dict[str, dict[str, Any]] = {"AUC": {}, "AP": {}}
    for key, p in predictors.items():
        if key == MODEL or np.ptp(p.scores_N) > 0:  # a constant predictor has no curve
            metrics = report["predictors"][key]["metrics"]
            for title, measure in (("AUC", "roc_auc"), ("AP", "pr_auc")):
                curves[title][f"{key} ({title} {metrics[measure] or 0:.3f})"] = p.scores_N
    m = report["predictors"][MODEL]["metrics"]
    roc_point = m["fp"] / max(1, m["fp"] + m["tn"]), m["recall"]
    pr_point = m["recall"], m["precision"]
    return {
        "roc": roc_png(f"ROC on {name}", labels_N, curves["AUC"], roc_point),
        "pr": pr_png(f"Precision-recall on {name}", labels_N, curves["AP"], pr_point),
    }
