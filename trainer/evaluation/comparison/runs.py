"""What a finished run has measured, read from its folder, and paired with another's.

Shapes: N functions, or records of a language, in the order of the predictions; C classes.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from data.errors import DataError, json_object, parsing
from trainer.config.renamed import with_current_keys
from trainer.config.sections import RunConfig
from trainer.config.strict_yaml import read_yaml_file
from trainer.errors import ConfigError, ModelError
from trainer.evaluation.best_step import deciding
from trainer.evaluation.language.sums import TokenSums
from trainer.evaluation.measures import measured
from trainer.evaluation.predictors import ClassScored, Measured, Scored
from trainer.evaluation.report import MODEL
from trainer.evaluation.resampling import IntArray, cluster_ids
from trainer.run_folder.folder import LOG, RECIPE, REPORT
from trainer.run_folder.metrics import read_log

Predictor: TypeAlias = Scored | ClassScored | TokenSums
Row: TypeAlias = Mapping[str, Any]
_ROUNDING = 1e-9  # of a measure that is computed again
_AGAIN = "the launcher/train.py command of the run writes it again, and trains no step twice"


@dataclass(frozen=True)
class MeasuredRun:
    """A run and what it predicted on one split.

    Attributes:
        name: Of its folder, told apart from the others'.
        settings: Its resolved recipe, by "section.key".
        report: The content of the report's JSON.
        rows: Its predictions.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    report: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def of(self) -> Measured:
        """What its measures are computed from."""
        usual = "functions" if "metrics" in self.report["predictors"][MODEL] else "tokens"
        of: Measured = self.report.get("measured", usual)
        several = self.report.get("problem_type") == "multi_label_classification"
        return "labels" if several else of  # older reports have one kind for both

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none where they are vulnerable and not, or tokens."""
        found = self.report.get("classes", [])
        return [one if isinstance(one, str) else one["class"] for one in found]

    @cached_property
    def cluster_N(self) -> IntArray:
        """The group that each row is drawn with."""
        return cluster_ids([row.get("group") or n for n, row in enumerate(self.rows)])

    @cached_property
    def predictor(self) -> Predictor:
        """The predictions as what measures are computed from."""
        if self.of == "tokens":
            return TokenSums(*(self._column(k) for k in ("nll", "num_correct", "num_targets")))
        if self.of == "functions":
            labels_N = self._column("label").astype(np.int64)
            return Scored(self._column("score"), labels_N, float(self.report["threshold"]))
        is_one = self.of == "classes"
        labels = [[row["label"]] if is_one else row["label"] for row in self.rows]
        holds_NC = np.array([[name in label for name in self.classes] for label in labels])
        cuts = [0.5 if is_one else row.get("threshold", 0.5) for row in self.report["classes"]]
        return ClassScored(self._column("scores"), holds_NC, is_one, cuts)

    def _column(self, key: str) -> Any:
        column = np.array([row[key] for row in self.rows], np.float64)
        if not np.isfinite(column).all():
            raise ValueError(f"a {key} is not finite")
        return column


def read_run(folder: Path, name: str, split: str) -> MeasuredRun:
    """Read the report of a split from a run folder.

    Raises:
        ConfigError: It is not a run folder, or its recipe cannot be read.
        ModelError: It has no such report, or trained on after it; or a file is damaged.
    """
    if not (folder / RECIPE).is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no {RECIPE}")
    with parsing(f"{folder / RECIPE} is not a run's recipe", ConfigError, "copy the folder again"):
        recipe = RunConfig.model_validate(with_current_keys(read_yaml_file(folder / RECIPE)))
    settings = {
        f"{section}.{key}": value
        for section, block in recipe.to_json().items()
        for key, value in block.items()
    }
    path = folder / REPORT / f"{split}.json"
    if not path.is_file():
        found = sorted(other.stem for other in path.parent.glob("*.json"))
        raise ModelError(
            f"{folder} has no report on {split} (it has {', '.join(found) or 'none yet'}); let the"
            f" run finish, or make one with launcher/evaluate.py {folder} FILE --name {split}"
        )
    report = json_object(path, ModelError, _AGAIN)
    with parsing(f"{path} is damaged, or of a version without predictions", ModelError, _AGAIN):
        predictions = path.parent / Path(report["files"]["predictions"]).name
        num_steps = report["facts"].get("steps", math.inf)
    if any(row["step"] > num_steps for row in read_log(folder / LOG)):
        raise ModelError(f"{folder} has trained on since its report; let the run finish")
    with parsing(f"{predictions} is damaged", ModelError, _AGAIN):
        lines = predictions.read_text(encoding="utf-8").splitlines()
        run = MeasuredRun(folder, name, settings, report, tuple(map(json.loads, lines)))
        _check_whole(run)
    return run


def paired(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """The runs with their predictions in the order of the first one's.

    Raises:
        DataError: Runs that were measured on other functions, labels, texts or targets.
    """
    rows, found = _by_id(runs[0]), [runs[0]]
    for run in runs[1:]:
        others = _by_id(run)
        if faults := _kind_faults(runs[0], run) or _row_faults(rows, others):
            raise DataError(
                f"{run.folder} was not measured on what {runs[0].folder} was:"
                f" {'; '.join(faults)}; compare runs on the same test set"
            )
        found.append(replace(run, rows=tuple(others[key] for key in rows)))
    return found


def _check_whole(run: MeasuredRun) -> None:
    """Compute the main measure again: a line that is lost or changed gives another one."""
    population = run.report["population"]
    num = population["num_records" if run.of == "tokens" else "num"]
    if len(run.rows) != num:
        raise ValueError(f"it has {len(run.rows)} lines, the report {num}")
    model = run.report["predictors"][MODEL]
    name, _ = deciding(run.of, "auto")
    again, said = measured(run.of, run.predictor)[name], model.get("metrics", model)[name]
    if (again is None) != (said is None) or abs((again or 0.0) - (said or 0.0)) > _ROUNDING:
        raise ValueError(f"its {name} is {again}, that of the report {said}")


def _by_id(run: MeasuredRun) -> dict[tuple[str, int], Row]:
    """Predictions by id; of several with one id, the first, the second and so on."""
    seen, found = Counter[str](), dict[tuple[str, int], Row]()
    for row in run.rows:
        found[row["id"], seen[row["id"]]] = row
        seen[row["id"]] += 1
    return found


def _kind_faults(first: MeasuredRun, run: MeasuredRun) -> list[str]:
    """What two runs have learned, where that is not the same."""
    kinds = [(one.of, one.classes, one.report.get("problem_type")) for one in (first, run)]
    return [] if kinds[0] == kinds[1] else [f"it learned {kinds[1]}, the other {kinds[0]}"]


def _row_faults(
    rows: Mapping[tuple[str, int], Row], others: Mapping[tuple[str, int], Row]
) -> list[str]:
    """What keeps predictions from being paired: how many, and an example."""
    odd: dict[str, list[tuple[str, int]]] = {
        "functions are only in it": [key for key in others if key not in rows],
        "functions are missing": [key for key in rows if key not in others],
    }
    both = [key for key in rows if key in others]
    for field, what in (("label", "labels"), ("digest", "texts"), ("num_targets", "target counts")):
        values = ((key, rows[key].get(field), others[key].get(field)) for key in both)
        # Predictions of older versions have no digest.
        odd[f"{what} differ"] = [k for k, a, b in values if None not in (a, b) and a != b]
    return [f"{len(keys)} {what}, e.g. {keys[0][0]!r}" for what, keys in odd.items() if keys]
