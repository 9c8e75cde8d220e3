"""The report of a language task: losses with intervals, before and after training, on one split.

N records of the split, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.audit.markdown import fill
from trainer.evaluation.functions import figures
from trainer.evaluation.functions.report import LEVEL, SEED
from trainer.evaluation.language.tokens import FloatArray, TokenSums, perplexity
from trainer.evaluation.measures import shown_measures
from trainer.evaluation.page import facts_table, json_text, print_report, table, write_files
from trainer.evaluation.resampling import percentile_interval, resamples

if TYPE_CHECKING:
    from rich.console import Console

MODEL, BEFORE, UNIGRAM = "model", "before training", "unigram of train"
FEWEST_RECORDS = 20
_PAGE = Path(__file__).with_name("report.md.jinja")


@dataclass(frozen=True)
class LanguageScores:
    """What was measured on a split.

    Attributes:
        model: Of the best checkpoint.
        before: Of the model the run began with; None where it was not measured.
        unigram: Loss of token frequencies alone.
        files: First record of each file by name.
        samples: Prompts with the model's answers.
        curves: Name -> [(step, loss)].
    """

    model: TokenSums
    before: TokenSums | None
    unigram: float
    files: Mapping[str, int]
    samples: Sequence[Mapping[str, Any]]
    curves: Mapping[str, Sequence[tuple[float, float]]]


def write_language_report(
    folder: Path,
    name: str,
    scores: LanguageScores,
    facts: Mapping[str, Any],
    num_resamples: int = 1000,
) -> dict[str, Any]:
    """Write <name>.md, <name>_loss.png and, last, <name>.json; its content.

    Intervals are percentiles of a bootstrap over records; the model and what it was before are
    compared on the same resamples. Of few records there is neither: each would be drawn again.
    """
    scored_N = scores.model.count_N > 0
    intervals: Mapping[str, tuple[float, float]] = {}
    difference = None
    if scored_N.sum() >= FEWEST_RECORDS:
        intervals, difference = _bootstrap(scores, num_resamples)
    predictors = {MODEL: _measured(scores.model, intervals.get(MODEL))}
    if scores.before is not None:
        predictors[BEFORE] = _measured(scores.before, intervals.get(BEFORE))
    predictors[UNIGRAM] = {"loss": scores.unigram, "perplexity": perplexity(scores.unigram)}
    files = {"loss": f"{name}_loss.png", "markdown": f"{name}.md", "json": f"{name}.json"}
    report = {
        "split": name,
        "population": {
            "num_records": len(scored_N),
            "num_scored": int(scored_N.sum()),
            "num_targets": int(scores.model.count_N.sum()),
        },
        "bootstrap": {"num_resamples": num_resamples, "seed": SEED, "level": LEVEL},
        "predictors": predictors,
        "comparison": difference,
        "by_file": _by_file(scores),
        "samples": list(scores.samples),
        "facts": dict(facts),
        "files": files,
    }
    picture = figures.loss_png("Loss over steps", scores.curves, {UNIGRAM: scores.unigram})
    contents: dict[str, bytes | str] = {
        files["loss"]: picture,
        files["markdown"]: render(report),
        files["json"]: json_text(report),
    }
    write_files(folder, contents)
    return report


def print_language_table(report: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print the predictors of a report, one row each, and how the model compares."""
    print_report(report, _header(), _rows(report), console)


def render(report: Mapping[str, Any]) -> str:
    """The report as one Markdown page."""
    from markupsafe import Markup

    return fill(
        _PAGE,
        r=report,
        predictors=table(_header(), _rows(report)),
        fewest=FEWEST_RECORDS,
        samples=[Markup(sample_page(sample)) for sample in report["samples"]],
        facts=facts_table(report["facts"]),
    )


def sample_page(sample: Mapping[str, Any]) -> str:
    """A prompt and its answer as Markdown, indented so that nothing in them is markup."""
    how = "" if sample["ended"] else " (cut off)"
    parts = [("prompt", sample["prompt"]), (f"answer{how}", sample["answer"])]
    if sample["reference"]:
        parts.append(("the data's answer", sample["reference"]))
    blocks = (
        f"**{what}**\n\n" + "\n".join(f"    {line}" for line in text.split("\n"))
        for what, text in parts
    )
    return "\n\n".join(blocks)


def _measured(sums: TokenSums, interval: tuple[float, float] | None) -> dict[str, Any]:
    ends = None if interval is None else list(interval)
    return {"loss": sums.loss, "interval": ends} | sums.measured()


def _bootstrap(
    scores: LanguageScores, num_resamples: int
) -> tuple[dict[str, tuple[float, float]], dict[str, Any] | None]:
    """Intervals of the losses, and of the difference between them."""
    count_N = scores.model.count_N
    nlls = {MODEL: scores.model.nll_N}
    if scores.before is not None:
        nlls[BEFORE] = scores.before.nll_N
    drawn: dict[str, list[FloatArray]] = {name: [] for name in nlls}
    for weights_RN in resamples(len(count_N), num_resamples, SEED):
        counts_R = np.maximum(weights_RN @ count_N, 1)
        for name, nll_N in nlls.items():
            drawn[name].append(weights_RN @ nll_N / counts_R)
    losses_R = {name: np.concatenate(parts) for name, parts in drawn.items()}
    intervals = {name: percentile_interval(values, LEVEL) for name, values in losses_R.items()}
    if scores.before is None:
        return intervals, None
    low, high = percentile_interval(losses_R[MODEL] - losses_R[BEFORE], LEVEL)
    verdict = "not distinguishable from what it was"
    if high < 0 or low > 0:
        verdict = "better than it was" if high < 0 else "worse than it was"
    return intervals, {
        "loss_difference": scores.model.loss - scores.before.loss,
        "interval": [low, high],
        "verdict": f"{verdict} before training",
    }


def _by_file(scores: LanguageScores) -> list[dict[str, Any]]:
    starts = list(scores.files.values())
    counts = np.add.reduceat(scores.model.count_N, starts)
    model = scores.model.by_file(scores.files)
    before = scores.before.by_file(scores.files) if scores.before is not None else {}
    return [
        {
            "file": file,
            "num_targets": int(count),
            "loss": model.get(file),
            "before": before.get(file),
        }
        for file, count in zip(scores.files, counts, strict=True)
    ]


def _header() -> list[str]:
    return ["Predictor", *(measure.heading for measure in shown_measures("tokens").values())]


def _rows(report: Mapping[str, Any]) -> list[list[str]]:
    """One row per predictor: its name and every measure it has."""
    return [
        [
            predictor,
            *(
                measure.text(values[name], values.get("interval") if name == "loss" else None)
                if name in values
                else "-"
                for name, measure in shown_measures("tokens").items()
            ),
        ]
        for predictor, values in report["predictors"].items()
    ]
