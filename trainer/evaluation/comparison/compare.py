"""Runs against the first of them: paired differences, McNemar's test, who changed sides.

Shapes: N functions or records, C classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.readers.names import told_apart
from trainer.errors import ConfigError
from trainer.evaluation.bootstrap import Bootstrap, bootstrap
from trainer.evaluation.comparison.report import write_comparison
from trainer.evaluation.comparison.runs import MeasuredRun, Predictor, paired, read_run
from trainer.evaluation.language.report import FEWEST_RECORDS
from trainer.evaluation.language.sums import TokenSums
from trainer.evaluation.measures import measured, measures_of
from trainer.evaluation.predictors import Scored
from trainer.evaluation.resampling import USUAL_DRAWS, FloatArray, Resampling
from trainer.run_folder.folder import LOG
from trainer.run_folder.metrics import read_log, resources

Mask = npt.NDArray[np.bool_]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Where a run lives, its seed, and what is shown or kept of it: of one group these can differ.
_NOT_DECISIVE = (
    "run.", "log.", "save.", "data.cache_dir", "model.quantize_cache", "engine.timeout_seconds",
    "engine.join_seconds",
)  # fmt: skip
# What "auto" became, and the content of the files: equal recipes can differ in these.
_FACTS = ("precision", "sha256_train", "sha256_valid", "sha256_tokenizer")
_OF_DATA = ("labels_N", "holds_NC", "is_one")  # fields of predictors that no run changes


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; `letter` is its name in tables."""

    letter: str
    runs: tuple[MeasuredRun, ...]

    @cached_property
    def averaged(self) -> Predictor:
        """The mean over runs of every score, threshold and loss."""
        predictors = [run.predictor for run in self.runs]
        means = {
            field.name: np.mean([getattr(one, field.name) for one in predictors], axis=0)
            for field in fields(predictors[0])
            if field.name not in _OF_DATA
        }
        return replace(predictors[0], **means)

    @cached_property
    def answers(self) -> tuple[Mask, FloatArray, Mask]:
        """Answers, scores minus thresholds, and the truth, all (N, C)."""
        one = self.averaged
        assert not isinstance(one, TokenSums)
        if isinstance(one, Scored):
            above_N1 = (one.scores_N - one.threshold)[:, None]
            return one.predicted_N[:, None] == 1, above_N1, one.labels_N[:, None] == 1
        return one.predicted_NC, one.scores_NC - np.array(one.threshold_C), one.holds_NC

    @property
    def right_N(self) -> Mask:
        """Whether the whole answer is right."""
        predicted_NC, _, holds_NC = self.answers
        return np.asarray((predicted_NC == holds_NC).all(axis=1))


def compare_runs(folders: Sequence[Path], split: str, output: Path | None) -> None:
    """Compare finished runs; writes compare.svg, .md and .json and prints their table.

    Args:
        folders: Run folders; the first is what the others are compared with.
        split: Name of their reports.
        output: Folder of the files; None: "comparison" beside the first run.

    Raises:
        ConfigError: Fewer than two runs, one twice, or a folder that is not a run.
        DataError: They were measured on other functions.
        ModelError: A run is not finished or damaged.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < max(2, len(paths)):
        raise ConfigError("give two or more runs, each once")
    output = output or paths[0].parent / "comparison"
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--out {output} is not a folder; give another one")
    longer = told_apart(paths)
    runs = paired([read_run(path, longer.get(path, path.name), split) for path in paths])
    write_comparison(output, comparison(runs))


def comparison(runs: Sequence[MeasuredRun], draws: Resampling = USUAL_DRAWS) -> dict[str, Any]:
    """The content of compare.json; `runs` are as `paired` gives them.

    Each group is compared with the first on the same resamples.
    """
    first, groups = runs[0], grouped(runs)
    drawn = drawn_together(first, {group.letter: group.averaged for group in groups}, draws)
    settings = [decisive(group.runs[0]) for group in groups]
    values = {key: [one.get(key) for one in settings] for one in settings for key in one}
    return {
        "split": first.report["split"],
        "measured": first.of,
        "num": len(first.rows),
        "bootstrap": asdict(draws) | {"num_clusters": int(first.cluster_N.max()) + 1},
        "groups": [_described(group, drawn) for group in groups],
        "differences": [_against(groups[0], other, drawn) for other in groups[1:]],
        "settings": {k: each for k, each in values.items() if any(v != each[0] for v in each)},
        "not_compared": _not_compared(runs, drawn),
    }


def grouped(runs: Sequence[MeasuredRun]) -> list[Group]:
    """Runs whose settings differ in nothing that is decisive are one group.

    Raises:
        ConfigError: More groups than letters.
    """
    members: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        members.setdefault(json.dumps(decisive(run), sort_keys=True), []).append(run)
    if len(members) > len(_LETTERS):
        raise ConfigError(f"{len(members)} settings; compare at most {len(_LETTERS)} at a time")
    return [Group(*pair) for pair in zip(_LETTERS, map(tuple, members.values()), strict=False)]


def decisive(run: MeasuredRun) -> dict[str, Any]:
    """The settings that make a run another one, by key."""
    facts = run.report["facts"]
    chosen = {k: v for k, v in run.settings.items() if not k.startswith(_NOT_DECISIVE)}
    return chosen | {key: facts[key] for key in _FACTS if key in facts}


def mcnemar(first_N: Mask, other_N: Mask) -> dict[str, Any]:
    """McNemar's test of who is right more often, exact for any number of disagreements.

    Where both are equally good, each function that one alone has right is a toss of a coin (McNemar
    1947; the binomial test of its discordant pairs).

    Args:
        first_N, other_N: Whether the answer to each function is right.
    """
    from scipy.stats import binomtest

    only_first, only_other = int((first_N & ~other_N).sum()), int((other_N & ~first_N).sum())
    num = only_first + only_other
    p = float(binomtest(only_other, num).pvalue) if num else 1.0
    return {"only_first_right": only_first, "only_other_right": only_other, "p": p}


def drawn_together(
    first: MeasuredRun, predictors: Mapping[str, Predictor], draws: Resampling = USUAL_DRAWS
) -> Bootstrap:
    """Every measure of predictors, in the order of the first run's rows, on the same resamples."""
    one = next(iter(predictors.values()))
    if isinstance(one, TokenSums) and (one.count_N > 0).sum() < FEWEST_RECORDS:
        return Bootstrap({}, 0, draws.level)
    labels_N = one.labels_N if isinstance(one, Scored) else None
    return bootstrap(first.of, predictors, first.cluster_N, draws, labels_N)


def _described(group: Group, drawn: Bootstrap) -> dict[str, Any]:
    of, num = group.runs[0].of, len(group.runs)
    values = [measured(of, run.predictor) for run in group.runs]
    by_key = {key: np.array([one[key] for one in values], np.float64) for key in values[0]}
    known = {key: each for key, each in by_key.items() if not np.isnan(each).any()}
    more = "" if num == 1 else f" and {num - 1} more seed{'s' * (num > 2)}"
    return {
        "letter": group.letter,
        "title": f"{group.letter}: {group.runs[0].name}{more}",
        "runs": [
            {
                "folder": str(run.folder),
                "name": run.name,
                "seed": run.settings["run.seed"],
                "best_step": run.report["facts"].get("best_step"),
                "stopped_early": run.report["facts"].get("stopped_early"),
                "measures": one,
                "resources": resources(read_log(run.folder / LOG)),
            }
            for run, one in zip(group.runs, values, strict=True)
        ],
        "mean": {key: float(each.mean()) for key, each in known.items()},
        "sd": {k: float(each.std(ddof=1)) for k, each in known.items()} if num > 1 else {},
        "averaged": measured(of, group.averaged),
        "intervals": drawn.intervals(group.letter),
    }


def _against(first: Group, other: Group, drawn: Bootstrap) -> dict[str, Any]:
    """A group minus the first, both with averaged scores."""
    of = first.runs[0].of
    one, two = (measured(of, group.averaged) for group in (first, other))
    found: dict[str, Any] = {"first": first.letter, "other": other.letter, "measures": {}}
    for key, measure in measures_of(of).items():
        a, b, interval = one[key], two[key], None
        if (first.letter, key) in drawn.values:
            interval = drawn.difference(key, other.letter, first.letter)
        found["measures"][key] = {
            "difference": None if a is None or b is None else b - a,
            "interval": interval,
            "verdict": measure.verdict(interval) if interval else None,
        }
    if of != "tokens":
        found["mcnemar"] = mcnemar(first.right_N, other.right_N)
        found["changed"] = _changed(first, other)
    return found


def _changed(first: Group, other: Group) -> list[dict[str, Any]]:
    """Functions with another answer, those first whose scores moved farthest in what changed."""
    run, groups = first.runs[0], {"first": first, "other": other}
    changed_NC = first.answers[0] != other.answers[0]
    moved_N = (np.abs(first.answers[1] - other.answers[1]) * changed_NC).sum(axis=1)
    places = np.flatnonzero(changed_NC.any(axis=1))

    def named(predicted_C: Mask) -> int | list[str]:
        if run.of == "functions":
            return int(predicted_C[0])
        return [name for name, is_held in zip(run.classes, predicted_C, strict=True) if is_held]

    return [
        {
            **{key: run.rows[place][key] for key in ("id", "origin", "label", "cwe")},
            **{key: named(group.answers[0][place]) for key, group in groups.items()},
            "right": [key for key, group in groups.items() if group.right_N[place]],
            "moved": float(moved_N[place]),
        }
        for place in places[np.argsort(-moved_N[places], kind="stable")].tolist()
    ]


def _not_compared(runs: Sequence[MeasuredRun], drawn: Bootstrap) -> dict[str, str]:
    """What these predictions do not allow, and why."""
    of, found = runs[0].of, dict[str, str]()
    if without := [key for key in measures_of(of) if (_LETTERS[0], key) not in drawn.values]:
        few = f"they need {FEWEST_RECORDS} records" if of == "tokens" else "one class or one group"
        why = "these measures are not resampled" if drawn.values else few
        found[f"intervals of {', '.join(without)}"] = why
    if of == "tokens":
        found["McNemar's test and changed answers"] = "a loss is neither right nor wrong"
    elif not all(row.get("digest") for run in runs for row in run.rows):
        found["texts"] = "predictions of older versions have no digests; ids and labels are equal"
    return found
