"""The report of a classifier: metrics with intervals, its baselines, and every prediction.

Shapes: N functions, in the order of the predictions.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.text.labels import Classes
from trainer.config.threshold import ThresholdRule
from trainer.evaluation.bootstrap import Bootstrap, bootstrap
from trainer.evaluation.decision import Decision
from trainer.evaluation.errors import TextOf, farthest
from trainer.evaluation.figures import pr_svg, reliability_svg, roc_svg
from trainer.evaluation.functions.baselines import SHORTCUTS, TFIDF_LOGISTIC, Baseline
from trainer.evaluation.functions.metrics import at_temperature, classification_metrics
from trainer.evaluation.functions.predictions import DROPPED, Prediction
from trainer.evaluation.functions.slices import Pairs, slices_of
from trainer.evaluation.measures import MEASURES
from trainer.evaluation.predictors import NUM_BINS, Scored
from trainer.evaluation.report import (
    CONSTANT,
    MODEL,
    file_names,
    predictions_name,
    predictor_rows,
    table,
    write_report,
)
from trainer.evaluation.resampling import USUAL_DRAWS, Resampling, cluster_ids

SHORT_NAMES = Classes().shown
_PAGE = Path(__file__).with_name("report.md.jinja")


def write_function_report(
    folder: Path,
    name: str,
    predictions: Sequence[Prediction],
    decision: Decision,
    baselines: Mapping[str, Baseline],
    facts: Mapping[str, Any],
    draws: Resampling = USUAL_DRAWS,
    names: Sequence[str] = SHORT_NAMES,
    text_of: TextOf | None = None,
) -> dict[str, Any]:
    """Measure the predictions; write <name>.json, .md, three pictures and predictions.

    Args:
        folder: Receives the files; created when absent.
        name: The split's, in letters, digits, "-" and "_"; `predictions_name` follows from it.
        predictions: One for each function of the split.
        decision: What validation chose; the model predicts 1 at a score >= its threshold.
        baselines: Name -> scores in the order of `predictions`. Those that learn are compared with
            the model, function by function.
        facts: What the reader needs to repeat the run: recipe, step, digests. With base_rate, the
            answers are shown at that share of vulnerable functions too.
        draws: How the bootstrap of the intervals draws.
        names: Of the classes 0 and 1.
        text_of: For the errors, by the place of a prediction.

    Returns:
        The content of <name>.json.

    Raises:
        ValueError: A bad name, score, label or `predicted`, or a baseline of another size.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"split name {name!r} names files; use letters, digits, '-' and '_'")
    _check_predicted(predictions, decision.threshold)
    labels_N = np.array([p.label for p in predictions], dtype=np.int64)
    model = Baseline(np.array([p.score for p in predictions], dtype=np.float64), decision.threshold)
    predictors = {
        key: Scored(p.scores_N, labels_N, p.threshold)
        for key, p in {MODEL: model, **baselines}.items()
    }
    measured = _measure(name, predictions, predictors, draws)
    report = {
        "split": name,
        **_decided(decision, measured["predictors"][MODEL]["metrics"], names),
        "in_use": in_use(measured["predictors"][MODEL]["metrics"], facts.get("base_rate")),
        **measured,
        "calibration": _calibration(predictors[MODEL], decision.temperature),
        "errors": list(_errors(predictions, names, text_of)),
        "facts": dict(facts),
        "files": file_names(name, "roc", "pr", "calibration", predictions=predictions_name(name)),
    }
    report |= {} if names == SHORT_NAMES else {"classes": list(names)}
    lines = [json.dumps(vars(p), ensure_ascii=False, allow_nan=False) for p in predictions]
    contents: dict[str, bytes | str] = {"predictions": "".join(f"{line}\n" for line in lines)}
    contents |= _figures(report, predictors)
    details = table(*predictor_rows(report, details=True))
    write_report(folder, report, _PAGE, contents, details=details)
    return report


def _errors(
    predictions: Sequence[Prediction], names: Sequence[str], text_of: TextOf | None
) -> Iterator[dict[str, Any]]:
    """The wrong answers whose scores are farthest from the label, without dropped functions."""
    distances = (
        abs(p.label - p.score) * (p.predicted != p.label and not p.note.startswith(DROPPED))
        for p in predictions
    )
    for place, text in farthest(np.fromiter(distances, np.float64), text_of):
        p = predictions[place]
        row = {"id": p.id, "origin": p.origin, "cwe": p.cwe, "label": names[p.label]}
        yield row | {"predicted": names[p.predicted], "score": p.score, "text": text}


def _decided(decision: Decision, counts: Mapping[str, int], names: Sequence[str]) -> dict[str, Any]:
    """The threshold, what it means on validation, and a warning if it hardly decides."""
    return {
        "threshold": decision.threshold,
        "threshold_source": ThresholdRule.of(decision.rule).title,
        "threshold_kept": decision.is_kept,
        "valid": valid_rates(decision.valid),
        "warning": constant_answer(counts, names),
    }


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
    model, slices, pairs = predictors[MODEL], slices_of(predictions), Pairs.of(predictions)
    aucs = {s.key: s.roc_auc(model) for of_kind in slices.values() for s in of_kind}
    more = aucs | pairs.statistics(model)
    drawn = bootstrap("functions", predictors, cluster_N, draws, labels_N, more)
    whole = {MODEL: model.resampled(np.ones((1, len(predictions)), np.float32))}
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
        "comparison": _compare(name, TFIDF_LOGISTIC, metrics, drawn),
        "shortcut": _compare(name, SHORTCUTS, metrics, drawn),
        "pairs": pairs.facts(model, drawn),
        "slices": {
            kind: [s.row(model, aucs[s.key], whole, drawn) for s in of_kind]
            for kind, of_kind in slices.items()
        },
    }


def _compare(
    name: str, baseline: str, metrics: Mapping[str, Mapping[str, Any]], drawn: Bootstrap
) -> dict[str, Any] | None:
    """The model's ROC AUC minus a baseline's, on the same resamples."""
    if baseline not in metrics or not drawn.values:
        return None
    interval = drawn.difference("roc_auc", MODEL, baseline)
    (low, high), (their_low, their_high) = (
        drawn.intervals(key)["roc_auc"] for key in (MODEL, baseline)
    )
    verdict = MEASURES["roc_auc"].verdict(interval)
    called = {TFIDF_LOGISTIC: "the word-count baseline"}.get(baseline, f"a baseline of {baseline}")
    return {
        "baseline": baseline,
        "auc_difference": metrics[MODEL]["roc_auc"] - metrics[baseline]["roc_auc"],
        "interval": interval,
        "separate_intervals_overlap": low <= their_high and their_low <= high,
        "verdict": f"{verdict} {called} on this {name} set",
    }


def constant_answer(counts: Mapping[str, int], names: Sequence[str]) -> str | None:
    """A sentence where a predictor gives one answer to more than 90% of each class."""
    safe, vulnerable = counts["tn"] + counts["fp"], counts["fn"] + counts["tp"]
    for number, (of_safe, of_vulnerable) in enumerate(
        ((counts["tn"], counts["fn"]), (counts["fp"], counts["tp"]))
    ):
        if of_safe + of_vulnerable > CONSTANT * (safe + vulnerable) and all(
            not num or answered > CONSTANT * num
            for num, answered in ((safe, of_safe), (vulnerable, of_vulnerable))
        ):
            return (
                f"the model answers {names[number]!r} for {of_safe + of_vulnerable} of"
                f" {safe + vulnerable} functions whatever their label: the threshold does not"
                " tell them apart"
            )
    return None


def in_use(counts: Mapping[str, int], base_rate: float | None) -> list[dict[str, Any]]:
    """What the answers come to where vulnerable functions are rarer than in the split.

    Recall and false positive rate belong to the model and the threshold; precision, F1 and alarms
    follow from them and the share of vulnerable functions.
    """
    negatives, positives = counts["tn"] + counts["fp"], counts["fn"] + counts["tp"]
    if not negatives or not positives:
        return []
    recall, alarm_rate = counts["tp"] / positives, counts["fp"] / negatives
    shares = {f"1:{num}": 1 / (1 + num) for num in (1, 10, 34)}
    if base_rate is not None:
        shares["eval.base_rate"] = base_rate
    rows = []
    for name, share in shares.items():
        true, false = recall * share, alarm_rate * (1 - share)
        precision = true / (true + false) if true + false else 0.0
        f1 = 2 * true / (true + false + share)
        row = {"rate": name, "share": share, "alarms": 1000 * (true + false), "true": 1000 * true}
        rows.append(row | {"missed": 1000 * (share - true), "precision": precision, "f1": f1})
    return rows


def valid_rates(counts: Mapping[str, int]) -> dict[str, float] | None:
    """What the threshold means on validation; None for a run that did not keep its counts."""
    if not counts:
        return None
    negatives, positives = counts["tn"] + counts["fp"], counts["fn"] + counts["tp"]
    return {
        "num": negatives + positives,
        "recall": counts["tp"] / max(1, positives),
        "fpr": counts["fp"] / max(1, negatives),
        "precision": counts["tp"] / max(1, counts["tp"] + counts["fp"]),
    }


def _calibration(model: Scored, temperature: float | None) -> dict[str, Any]:
    """How far scores are from probabilities, as they are and at the temperature of validation."""
    if temperature is None:
        return {"temperature": None, "curve": reliability(model)}
    scaled = replace(model, scores_N=at_temperature(model.scores_N, temperature))
    return {
        "temperature": temperature,
        "scaled": {key: MEASURES[key].function(scaled) for key in ("brier", "ece")},
        "curve": reliability(model),
        "scaled_curve": reliability(scaled),
    }


def reliability(scored: Scored) -> list[dict[str, float]]:
    """Mean score and share of positives of each tenth of [0, 1] that holds functions."""
    num_B, score_B, positive_B = (
        np.bincount(scored.bin_N, values_N, NUM_BINS)
        for values_N in (np.ones(len(scored.bin_N)), scored.scores_N, scored.labels_N)
    )
    return [
        {"num": int(num_B[b]), "score": score_B[b] / num_B[b], "share": positive_B[b] / num_B[b]}
        for b in np.flatnonzero(num_B)
    ]


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
    m, calibration = report["predictors"][MODEL]["metrics"], report["calibration"]
    tenths = {f"scores (ECE {m['ece']:.3f})": calibration["curve"]}
    if (temperature := calibration["temperature"]) is not None:
        ece = calibration["scaled"]["ece"]
        tenths[f"at temperature {temperature:.2f} (ECE {ece:.3f})"] = calibration["scaled_curve"]
    roc_point = m["fp"] / max(1, m["fp"] + m["tn"]), m["recall"]
    pr_point = m["recall"], m["precision"]
    return {
        "roc": roc_svg(f"ROC on {name}", labels_N, curves["AUC"], roc_point),
        "pr": pr_svg(f"Precision-recall on {name}", labels_N, curves["AP"], pr_point),
        "calibration": reliability_svg(f"Reliability on {name}", tenths),
    }
