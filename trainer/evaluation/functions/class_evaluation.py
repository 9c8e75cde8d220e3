"""Many classes, or several at once: validation chooses the best step, the report counts by class.

Shapes: N functions, P of them measured, C classes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.prepared.prepare import Split
from data.text.labels import VULNERABLE, Classes
from trainer.config.threshold import ThresholdRule
from trainer.evaluation.best_step import deciding_score
from trainer.evaluation.bootstrap import Statistic, bootstrap
from trainer.evaluation.decision import Decision
from trainer.evaluation.errors import TextOf, farthest
from trainer.evaluation.figures import confusion_svg
from trainer.evaluation.functions.baselines import PRIOR
from trainer.evaluation.functions.evaluation import class_scores, validation_scores
from trainer.evaluation.functions.metrics import choose_threshold, classification_metrics
from trainer.evaluation.functions.predictions import DROPPED
from trainer.evaluation.functions.scores import population, text_digest
from trainer.evaluation.measures import measured
from trainer.evaluation.predictors import ClassScored, Scored
from trainer.evaluation.report import MODEL, file_names, predictions_name, write_report
from trainer.evaluation.resampling import (
    USUAL_DRAWS,
    FloatArray,
    IntArray,
    Resampling,
    cluster_ids,
)
from trainer.evaluation.scoring import Evaluation, Validation
from trainer.run_folder.folder import REPORT

_PAGE = Path(__file__).with_name("class_report.md.jinja")
_MOST_DRAWN = 10**9  # resampled scores
_MOST_CELLS = 50  # classes of a confusion matrix that people read


class ClassEvaluation(Evaluation):
    """Evaluation of a run that tells many classes apart, or finds several at once."""

    def begin(self) -> None:
        """Nothing: the baseline is known from the data."""

    def validate(self, step: int) -> Validation:
        """Score the validation split; the deciding score, and thresholds where they decide."""
        scores_NC, loss = validation_scores(self)
        _, scored = self._scored(self.prepared.splits["valid"], scores_NC, ())
        rule, kind = self.config.eval.threshold, scored.measured
        decision = Decision(rule=rule)
        if scored.is_one and _has_safe(self.prepared.classes):
            collapsed = _collapsed(scored, 0.5)
            chosen = choose_threshold(
                collapsed.scores_N, collapsed.labels_N, ThresholdRule.of(rule)
            )
            decision = Decision(chosen[0], rule=rule, is_kept=chosen[1])
        elif not scored.is_one:
            answers = [
                choose_threshold(scores_N, holds_N, ThresholdRule.of(rule))
                for scores_N, holds_N in zip(scored.scores_NC.T, scored.holds_NC.T, strict=True)
            ]
            thresholds = [threshold for threshold, _ in answers]
            is_kept = all(is_kept for _, is_kept in answers)
            decision = Decision(thresholds=thresholds, rule=rule, is_kept=is_kept)
            scored = replace(scored, threshold_C=thresholds)
        values = measured(kind, scored) | {"loss": loss}
        self.log_validation(step, kind, values, loss=loss)
        return Validation(deciding_score(kind, values, self.config.eval.metric), decision)

    def test(
        self, split: Split, name: str, decision: Decision, facts: Mapping[str, Any]
    ) -> Callable[[], dict[str, Any]]:
        """Score a split; the report compares the model with the shares in training."""
        measured_P, scored = self._scored(split, class_scores(self, split), decision.thresholds)

        def write() -> dict[str, Any]:
            compat = self.config.replication.compat_population
            left_out = len(split.samples) - len(measured_P)
            all_facts = {**facts, "compat_population": compat, "num_left_out": left_out}
            rows = _rows(split, measured_P, scored, self.prepared.classes)
            folder, prior_C = self.config.output_dir / REPORT, self.prepared.prior_C
            classes = self.prepared.classes
            return write_class_report(
                folder, name, rows, scored, decision, classes, prior_C, all_facts,
                text_of=lambda place: split.samples[int(measured_P[place])].text,
            )  # fmt: skip

        return write

    def _scored(
        self, split: Split, scores_NC: npt.NDArray[np.float64], thresholds: Sequence[float]
    ) -> tuple[npt.NDArray[np.int64], ClassScored]:
        measured_P = population(split.examples, self.config.replication.compat_population)
        target_P, members_KC = np.array(split.targets)[measured_P], split.examples.members_KC
        names = self.prepared.classes.names
        known_KC = np.eye(len(names), dtype=np.bool_) if members_KC is None else members_KC
        is_one = members_KC is None
        return measured_P, ClassScored(
            scores_NC[measured_P], known_KC[target_P], is_one, thresholds or 0.5
        )


def write_class_report(
    folder: Path,
    name: str,
    rows: list[dict[str, Any]],
    scored: ClassScored,
    decision: Decision,
    classes: Classes,
    prior_C: npt.NDArray[np.float64],
    facts: Mapping[str, Any],
    text_of: TextOf | None = None,
) -> dict[str, Any]:
    """Write <name>.json, .md, predictions and a picture; returns the content of the JSON.

    Args:
        folder: Receives the files.
        name: The split's.
        rows: One for each function, for the predictions.
        scored: The model's scores.
        decision: What validation chose.
        classes: Their names.
        prior_C: Shares in training, which a baseline gives to every function.
        facts: What the reader needs to repeat the run.
        text_of: For the errors, by the place of a row.
    """
    pictures = ["confusion"] if scored.is_one and len(classes.names) <= _MOST_CELLS else []
    report = {
        "split": name,
        "measured": scored.measured,
        "problem_type": classes.problem_type,
        "decision": "the class of the highest score"
        if scored.is_one
        else f"every class at its threshold, the one with {ThresholdRule.of(decision.rule).title}",
        **_measure(rows, scored, decision, classes, prior_C),
        "confusion": scored.confusion if scored.is_one else None,
        "errors": list(_errors(rows, scored, text_of)),
        "comparison": None,
        "facts": dict(facts),
        "files": file_names(name, *pictures, predictions=predictions_name(name)),
    }
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    contents: dict[str, bytes | str] = {"predictions": "".join(f"{line}\n" for line in lines)}
    if pictures:
        title = f"Confusion on {name}"
        contents["confusion"] = confusion_svg(title, classes.names, scored.confusion)
    write_report(folder, report, _PAGE, contents, most_cells=_MOST_CELLS)
    return report


def _errors(
    rows: Sequence[Mapping[str, Any]], scored: ClassScored, text_of: TextOf | None
) -> Iterator[dict[str, Any]]:
    """The wrong answers with the largest distance of a score from its label, as in two classes."""
    is_wrong_NC = scored.predicted_NC != scored.holds_NC
    distance_N = (np.abs(scored.holds_NC - scored.scores_NC) * is_wrong_NC).max(axis=1)
    distance_N *= [not row["note"].startswith(DROPPED) for row in rows]
    for place, text in farthest(distance_N, text_of):
        row = {key: rows[place][key] for key in ("id", "origin", "label", "predicted", "cwe")}
        yield row | {"distance": float(distance_N[place]), "text": text}


def _measure(
    rows: Sequence[Mapping[str, Any]],
    scored: ClassScored,
    decision: Decision,
    classes: Classes,
    prior_C: npt.NDArray[np.float64],
) -> dict[str, Any]:
    constant_NC = np.tile(prior_C, (len(scored.scores_NC), 1))
    prior = replace(scored, scores_NC=constant_NC, threshold_C=0.5)
    predictors = {MODEL: scored, PRIOR: prior}
    cluster_N = cluster_ids([row["group"] or i for i, row in enumerate(rows)])
    draws = _draws(scored)
    more: dict[str, Statistic] = {
        f"roc_auc: {number}": partial(_ranked, number=number) for number in scored.varied
    }
    drawn = bootstrap(scored.measured, predictors, cluster_N, draws, more=more)
    by_class = scored.by_class(classes.names)
    for number, row in enumerate(by_class):
        row["interval"] = drawn.more(f"roc_auc: {number}")
        if not scored.is_one:
            row["threshold"] = float(np.broadcast_to(scored.threshold_C, len(by_class))[number])
    return {
        "population": {
            "num": len(rows),
            "num_groups": int(cluster_N.max()) + 1,
            "num_scored_by_prior": sum(row["note"].startswith(DROPPED) for row in rows),
        },
        "bootstrap": asdict(draws),
        "predictors": {
            key: {"metrics": measured(scored.measured, one), "intervals": drawn.intervals(key)}
            for key, one in predictors.items()
        },
        "classes": by_class,
        "vulnerable": _vulnerable_or_not(scored, decision, classes, cluster_N),
    }


def _has_safe(classes: Classes) -> bool:
    """Whether the first class says that a function is not vulnerable."""
    return classes.sets is None and classes.names[0] == VULNERABLE[0]


def _collapsed(scored: ClassScored, threshold: float) -> Scored:
    """Vulnerable or not: the score of all classes but the first."""
    labels_N = (~scored.holds_NC[:, 0]).astype(np.int64)
    return Scored(np.clip(1 - scored.scores_NC[:, 0], 0, 1), labels_N, threshold)


def _vulnerable_or_not(
    scored: ClassScored, decision: Decision, classes: Classes, cluster_N: IntArray
) -> dict[str, Any] | None:
    """The measures of two classes, where the first says that a function is not vulnerable."""
    if not _has_safe(classes):
        return None
    one = _collapsed(scored, decision.threshold)
    drawn = bootstrap("functions", {MODEL: one}, cluster_N, USUAL_DRAWS, one.labels_N)
    metrics = classification_metrics(one.scores_N, one.labels_N, one.threshold)
    return {
        "threshold_source": ThresholdRule.of(decision.rule).title,
        "predictors": {MODEL: {"metrics": metrics, "intervals": drawn.intervals(MODEL)}},
    }


def _draws(scored: ClassScored) -> Resampling:
    """The usual resamples, fewer where functions and classes are many."""
    most = _MOST_DRAWN // scored.scores_NC.size
    return replace(USUAL_DRAWS, num_resamples=max(100, min(USUAL_DRAWS.num_resamples, most)))


def _ranked(sums: Mapping[str, Any], number: int) -> FloatArray:
    values_R: FloatArray = sums[MODEL].ranked[number][0]
    return values_R


def _rows(
    split: Split, measured_P: npt.NDArray[np.int64], scored: ClassScored, classes: Classes
) -> list[dict[str, Any]]:
    seen = set(split.examples.record_E.tolist())

    def named(holds_C: npt.NDArray[np.bool_]) -> str | list[str]:
        names = [classes.names[number] for number in np.flatnonzero(holds_C)]
        return names[0] if scored.is_one else names

    rows = []
    for place, number in enumerate(measured_P.tolist()):
        sample = split.samples[number]
        row = {"id": sample.id, "origin": sample.origin, "label": named(scored.holds_NC[place])}
        row |= {"predicted": named(scored.predicted_NC[place])}
        row |= {"scores": scored.scores_NC[place].tolist(), "group": sample.commit}
        row |= {"cwe": sample.cwe, "status": sample.status}
        row["num_tokens"] = max(0, int(split.code_lengths[number]))
        row |= {"note": "" if number in seen else DROPPED, "digest": text_digest(sample.text)}
        rows.append(row)
    return rows
