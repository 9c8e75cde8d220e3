"""The evaluation report: one JSON, the page and figures made from it, and every prediction.

Shapes: N functions, in the order of the predictions.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from data.audit.markdown import fill
from trainer.evaluation.functions import figures
from trainer.evaluation.functions.baselines import TFIDF_LOGISTIC, Baseline
from trainer.evaluation.functions.metrics import (
    bootstrap,
    classification_metrics,
    paired_auc_difference,
)
from trainer.evaluation.measures import shown_measures
from trainer.evaluation.page import facts_table, json_text, print_report, table, write_files
from trainer.evaluation.resampling import FloatArray, IntArray, cluster_ids

if TYPE_CHECKING:
    from rich.console import Console

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

MODEL = "model"
DROPPED = "dropped: scored by the prior"
_PAGE = Path(__file__).with_name("report.md.jinja")
SEED, LEVEL = 0, 0.95


@dataclass(frozen=True)
class Prediction:
    """What the model said about one function.

    `origin` is file:line, `group` the commit (empty: on its own), `cwe` may be empty, `status` says
    how the text was read, and a `note` that begins with DROPPED marks a function the model never
    saw.
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


def write_report(
    folder: Path,
    split_name: str,
    predictions: Sequence[Prediction],
    threshold: float,
    threshold_source: str,
    baselines: Mapping[str, Baseline],
    facts: Mapping[str, Json],
    num_resamples: int = 1000,
) -> dict[str, Any]:
    """Measure the predictions; write <split>.json, .md, _roc.png, _pr.png and predictions.

    Each file is written under a temporary name and then renamed; <split>.json comes last, so where
    it lies the report is whole.

    Args:
        folder: Receives the files; created when absent.
        split_name: Letters, digits, "-" and "_"; "test" names its predictions predictions.jsonl,
            any other split <split>_predictions.jsonl.
        predictions: One per function of the split, none left out.
        threshold: The model says positive when score >= threshold.
        threshold_source: How it was chosen, e.g. "highest F1 on the validation split"; printed as
            it is.
        baselines: Name -> scores in the order of `predictions`. The one named TFIDF_LOGISTIC is
            compared pairwise.
        facts: What the reader needs to repeat the run: recipe, step, digests.
        num_resamples: Of the bootstrap behind every interval.

    Returns:
        The content of <split>.json.

    Raises:
        ValueError: A bad split name, score or label, a `predicted` that contradicts the threshold,
            or a baseline with the wrong number of scores.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", split_name):
        raise ValueError(f"split name {split_name!r} names files; use letters, digits, '-' and '_'")
    labels_N = np.array([p.label for p in predictions], dtype=np.int64)
    model = Baseline(np.array([p.score for p in predictions], dtype=np.float64), threshold)
    _check_predicted(predictions, threshold)
    predictors = {MODEL: model, **baselines}
    report = {
        "split": split_name,
        "threshold": threshold,
        "threshold_source": threshold_source,
        **_measure(split_name, predictions, predictors, labels_N, num_resamples),
        "facts": dict(facts),
        "files": _file_names(split_name),
    }
    _write_files(folder, report, predictions, predictors, labels_N)
    return report


def print_table(report: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print the predictors of a report, one row each, and how the model compares with words."""
    print_report(report, _header(), _rows(report), console)


def render(report: Mapping[str, Any]) -> str:
    """The report as one Markdown page; nothing is computed."""
    return fill(
        _PAGE,
        r=report,
        predictors=table(_header(), _rows(report)),
        facts=facts_table(report["facts"]),
    )


def _header() -> list[str]:
    return ["Predictor", *(measure.heading for measure in shown_measures("functions").values())]


def _rows(report: Mapping[str, Any]) -> list[list[str]]:
    """One row per predictor: its name, then "value [low, high]" for each measure."""
    return [
        [
            name,
            *(
                measure.text(p["metrics"][key], p["intervals"].get(key))
                for key, measure in shown_measures("functions").items()
            ),
        ]
        for name, p in report["predictors"].items()
    ]


def _measure(
    split_name: str,
    predictions: Sequence[Prediction],
    predictors: Mapping[str, Baseline],
    labels_N: IntArray,
    num_resamples: int,
) -> dict[str, Any]:
    # A function without a commit stands for itself: its index cannot equal a commit, which is text.
    cluster_N = cluster_ids([p.group or i for i, p in enumerate(predictions)], len(predictions))
    measured, counts = {}, {"num_clusters": 0, "num_redrawn": 0}
    for name, p in predictors.items():
        metrics = classification_metrics(p.scores_N, labels_N, p.threshold)
        drawn = bootstrap(p.scores_N, labels_N, p.threshold, cluster_N, num_resamples, SEED, LEVEL)
        # The draws depend on labels and clusters alone, so these counts are the same for every
        # predictor.
        counts = {"num_clusters": drawn.num_clusters, "num_redrawn": drawn.num_redrawn}
        intervals = {metric: list(ends) for metric, ends in drawn.intervals.items()}
        measured[name] = {"metrics": metrics, "intervals": intervals}
    return {
        "population": {
            "num": len(predictions),
            "num_positive": int(labels_N.sum()),
            "num_groups": counts["num_clusters"],
            "num_scored_by_prior": sum(p.note.startswith(DROPPED) for p in predictions),
            "by_status": dict(sorted(Counter(p.status for p in predictions).items())),
        },
        "bootstrap": {"num_resamples": num_resamples, "seed": SEED, "level": LEVEL, **counts},
        "predictors": measured,
        "comparison": _compare(
            split_name, predictors, measured, labels_N, cluster_N, num_resamples
        ),
        "by_cwe": _by_cwe(predictions),
    }


def _compare(
    split_name: str,
    predictors: Mapping[str, Baseline],
    measured: Mapping[str, Any],
    labels_N: IntArray,
    cluster_N: IntArray,
    num_resamples: int,
) -> dict[str, Any] | None:
    if TFIDF_LOGISTIC not in predictors:
        return None
    ours, theirs = predictors[MODEL].scores_N, predictors[TFIDF_LOGISTIC].scores_N
    paired = paired_auc_difference(ours, theirs, labels_N, cluster_N, num_resamples, SEED, LEVEL)
    if paired is None:
        return None
    (low, high), (their_low, their_high) = (
        measured[name]["intervals"]["roc_auc"] for name in (MODEL, TFIDF_LOGISTIC)
    )
    verdict = "not distinguishable from"
    if paired.low > 0 or paired.high < 0:
        verdict = "better than" if paired.low > 0 else "worse than"
    return {
        "baseline": TFIDF_LOGISTIC,
        "auc_difference": paired.difference,
        "interval": [paired.low, paired.high],
        "separate_intervals_overlap": low <= their_high and their_low <= high,
        "verdict": f"{verdict} the word-count baseline on this {split_name} set",
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
    # Among positives alone no answer can be a false alarm: precision would be 1 whatever the model
    # says.
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


def _file_names(split_name: str) -> dict[str, str]:
    is_test = split_name == "test"
    return {
        "roc": f"{split_name}_roc.png",
        "pr": f"{split_name}_pr.png",
        "predictions": "predictions.jsonl" if is_test else f"{split_name}_predictions.jsonl",
        "markdown": f"{split_name}.md",
        "json": f"{split_name}.json",
    }


def _write_files(
    folder: Path,
    report: Mapping[str, Any],
    predictions: Sequence[Prediction],
    predictors: Mapping[str, Baseline],
    labels_N: IntArray,
) -> None:
    files = report["files"]
    lines = [json.dumps(asdict(p), ensure_ascii=False, allow_nan=False) for p in predictions]
    contents: dict[str, bytes | str] = {
        files["predictions"]: "".join(f"{line}\n" for line in lines),
        **_figures(report, predictors, labels_N),
        files["markdown"]: render(report),
        files["json"]: json_text(report),
    }
    write_files(folder, contents)


def _figures(
    report: Mapping[str, Any], predictors: Mapping[str, Baseline], labels_N: IntArray
) -> dict[str, bytes]:
    roc_curves: dict[str, FloatArray] = {}
    pr_curves: dict[str, FloatArray] = {}
    for name, p in predictors.items():
        if name == MODEL or figures.varies(p.scores_N):
            metrics = report["predictors"][name]["metrics"]
            roc_curves[f"{name} (AUC {metrics['roc_auc'] or 0:.3f})"] = p.scores_N
            pr_curves[f"{name} (AP {metrics['pr_auc'] or 0:.3f})"] = p.scores_N
    m = report["predictors"][MODEL]["metrics"]
    false_positive_rate = m["fp"] / max(1, m["fp"] + m["tn"])
    split, files = report["split"], report["files"]
    roc_point, pr_point = (false_positive_rate, m["recall"]), (m["recall"], m["precision"])
    return {
        files["roc"]: figures.roc_png(f"ROC on {split}", labels_N, roc_curves, roc_point),
        files["pr"]: figures.pr_png(f"Precision-recall on {split}", labels_N, pr_curves, pr_point),
    }
