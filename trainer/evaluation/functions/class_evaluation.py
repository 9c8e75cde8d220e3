"""Many classes, or several at once: validation chooses the best step, the report counts by class.

Shapes: N functions, P of them measured, C classes.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.prepared.prepare import Split
from data.text.labels import Classes
from trainer.evaluation.best_step import deciding_score
from trainer.evaluation.functions.baselines import PRIOR
from trainer.evaluation.functions.evaluation import class_scores, validation_scores
from trainer.evaluation.functions.report import DROPPED
from trainer.evaluation.functions.scores import population, text_digest
from trainer.evaluation.measures import ClassScored, measured
from trainer.evaluation.report import MODEL, file_names, predictions_name, write_report
from trainer.evaluation.scoring import Evaluation, Validation
from trainer.run_folder.folder import REPORT

_PAGE = Path(__file__).with_name("class_report.md.jinja")
_MOST_CELLS = 50  # classes of a confusion matrix that people read


class ClassEvaluation(Evaluation):
    """Evaluation of a run that tells many classes apart, or finds several at once."""

    def begin(self) -> None:
        """Nothing: there is no baseline that learns."""

    def validate(self, step: int) -> Validation:
        """Score the validation split; the deciding score."""
        scores_NC, loss = validation_scores(self)
        _, scored = self._scored(self.prepared.splits["valid"], scores_NC)
        values = measured("classes", scored) | {"loss": loss}
        self.log_validation(step, "classes", values, loss=loss)
        return Validation(deciding_score("classes", values, self.config.eval.metric))

    def test(
        self, split: Split, name: str, threshold: float, facts: Mapping[str, Any]
    ) -> Callable[[], dict[str, Any]]:
        """Score a split; the report compares the model with the shares in training."""
        measured_P, scored = self._scored(split, class_scores(self, split))

        def write() -> dict[str, Any]:
            compat = self.config.replication.compat_population
            left_out = len(split.samples) - len(measured_P)
            all_facts = {**facts, "compat_population": compat, "num_left_out": left_out}
            rows = _rows(split, measured_P, scored, self.prepared.classes)
            folder, prior_C = self.config.output_dir / REPORT, self.prepared.prior_C
            return write_class_report(
                folder, name, rows, scored, self.prepared.classes, prior_C, all_facts
            )

        return write

    def _scored(
        self, split: Split, scores_NC: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int64], ClassScored]:
        measured_P = population(split.examples, self.config.replication.compat_population)
        target_P, members_KC = np.array(split.targets)[measured_P], split.examples.members_KC
        names = self.prepared.classes.names
        known_KC = np.eye(len(names), dtype=np.bool_) if members_KC is None else members_KC
        is_one = members_KC is None
        return measured_P, ClassScored(scores_NC[measured_P], known_KC[target_P], is_one=is_one)


def write_class_report(
    folder: Path,
    name: str,
    rows: list[dict[str, Any]],
    scored: ClassScored,
    classes: Classes,
    prior_C: npt.NDArray[np.float64],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write <name>.json, .md and predictions; returns the content of the JSON.

    Args:
        folder: Receives the files.
        name: The split's.
        rows: One for each function, for the predictions.
        scored: The model's scores.
        classes: Their names.
        prior_C: Shares in training, which a baseline gives to every function.
        facts: What the reader needs to repeat the run.
    """
    constant_NC = np.tile(prior_C, (len(scored.scores_NC), 1))
    prior = ClassScored(constant_NC, scored.holds_NC, is_one=scored.is_one)
    report = {
        "split": name,
        "measured": "classes",
        "problem_type": classes.problem_type,
        "decision": "the class of the highest score" if scored.is_one else "every class above 0.5",
        "population": {
            "num": len(rows),
            "num_scored_by_prior": sum(row["note"].startswith(DROPPED) for row in rows),
        },
        "predictors": {
            key: {"metrics": measured("classes", one)}
            for key, one in {MODEL: scored, PRIOR: prior}.items()
        },
        "classes": scored.by_class(classes.names),
        "confusion": scored.confusion if scored.is_one else None,
        "comparison": None,
        "facts": dict(facts),
        "files": file_names(name, predictions=predictions_name(name)),
    }
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    contents: dict[str, bytes | str] = {"predictions": "".join(f"{line}\n" for line in lines)}
    write_report(folder, report, _PAGE, contents, most_cells=_MOST_CELLS)
    return report


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
