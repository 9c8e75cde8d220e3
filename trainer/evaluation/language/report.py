"""The report of a language task: losses with intervals, before and after training, on one split.

N records of the split.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.text.escaping import markdown_block
from trainer.evaluation.bootstrap import Bootstrap, bootstrap
from trainer.evaluation.errors import TextOf, farthest
from trainer.evaluation.figures import curves_svg
from trainer.evaluation.language.sums import TokenSums, perplexity
from trainer.evaluation.measures import MEASURES, measured
from trainer.evaluation.report import MODEL, file_names, predictions_name, write_report
from trainer.evaluation.resampling import USUAL_DRAWS, Resampling

BEFORE, UNIGRAM = "before training", "unigram of train"
FEWEST_RECORDS = 20
_PAGE = Path(__file__).with_name("report.md.jinja")


@dataclass(frozen=True)
class LanguageScores:
    """What was measured on a split.

    Attributes:
        ids, digests: Of the records; digests are from `token_digests`.
        before: The model before the first step, without targets of the records that were not
            scored then (eval.before); None where it was not measured.
        unigram: Loss of token frequencies alone; None without a training split.
        files: First record of each file by name.
        curves: Name -> [(step, loss)].
        text_of: Text of a record, for those with the highest loss.
    """

    ids: Sequence[str]
    digests: Sequence[str]
    model: TokenSums
    before: TokenSums | None
    unigram: float | None
    files: Mapping[str, int]
    samples: Sequence[Mapping[str, Any]]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    text_of: TextOf | None = None


def write_language_report(
    folder: Path,
    name: str,
    scores: LanguageScores,
    facts: Mapping[str, Any],
    draws: Resampling = USUAL_DRAWS,
) -> dict[str, Any]:
    """Write <name>.md, <name>_loss.svg, predictions and, last, <name>.json; returns its content.

    Predictions have the sums of each record, by which launcher/compare.py pairs runs. Intervals are
    percentiles of a bootstrap over records. The model is compared with itself before training on
    the same resamples of the records that were scored then. Too few give neither.
    """
    baseline = {} if scores.unigram is None else {UNIGRAM: scores.unigram}
    unigram = {key: {"loss": one, "perplexity": perplexity(one)} for key, one in baseline.items()}
    scored_N = scores.model.count_N > 0
    whole, pair = {MODEL: scores.model}, _pair(scores)
    drawn, drawn_pair = _drawn(whole, draws), _drawn(pair, draws)
    report = {
        "split": name,
        "population": {
            "num_records": len(scored_N),
            "num_scored": int(scored_N.sum()),
            "num_targets": int(scores.model.count_N.sum()),
            "num_before": int((pair[BEFORE].count_N > 0).sum()) if pair else 0,
        },
        "bootstrap": asdict(draws),
        "predictors": {
            **_measured(whole, drawn),
            **_measured({BEFORE: pair[BEFORE]} if pair else {}, drawn_pair),
            **unigram,
        },
        "comparison": _compare(pair, drawn_pair),
        "by_file": _by_file(scores),
        "samples": list(scores.samples),
        "errors": list(_errors(scores)),
        "facts": dict(facts),
        "files": file_names(name, "loss", predictions=predictions_name(name)),
    }
    picture = curves_svg("Loss over steps", "loss (nats a token)", scores.curves, baseline)
    pages = [sample_page(sample) for sample in scores.samples]
    contents: dict[str, bytes | str] = {"loss": picture, "predictions": _lines(scores)}
    write_report(folder, report, _PAGE, contents, fewest=FEWEST_RECORDS, samples=pages)
    return report


def sample_page(sample: Mapping[str, Any]) -> str:
    """A prompt and its answer as Markdown, safe in a template: all is indented, none is markup."""
    from markupsafe import Markup

    how = "" if sample["ended"] else " (cut off)"
    parts = [("prompt", sample["prompt"]), (f"answer{how}", sample["answer"])]
    if sample["reference"]:
        parts.append(("the data's answer", sample["reference"]))
    blocks = (f"**{title}**\n\n{markdown_block(text)}" for title, text in parts)
    return Markup("\n\n".join(blocks))


def _errors(scores: LanguageScores) -> Iterator[dict[str, Any]]:
    """The records with the highest loss of a target."""
    nll_N, count_N = scores.model.nll_N, scores.model.count_N
    loss_N = nll_N / np.maximum(count_N, 1)
    for place, text in farthest(loss_N, scores.text_of):
        row = {"num_targets": int(count_N[place]), "loss": float(loss_N[place])}
        yield {"id": scores.ids[place], **row, "text": text}


def _lines(scores: LanguageScores) -> str:
    sums = scores.model
    columns = (sums.nll_N, sums.correct_N, sums.count_N)
    lists = (column.tolist() for column in columns)
    rows = zip(scores.ids, scores.digests, *lists, strict=True)
    keys = ("id", "digest", "nll", "num_correct", "num_targets")
    return "".join(f"{json.dumps(dict(zip(keys, row, strict=True)))}\n" for row in rows)


def _pair(scores: LanguageScores) -> dict[str, TokenSums]:
    """The model after and before training on the records that were scored before."""
    model, before = scores.model, scores.before
    if before is None:
        return {}
    records = np.arange(len(model.count_N))
    if not np.array_equal(model.count_N, before.count_N):
        records = np.flatnonzero(before.count_N)
    return {MODEL: model.at(records), BEFORE: before.at(records)}


def _drawn(sums: Mapping[str, TokenSums], draws: Resampling) -> Bootstrap:
    counts = [one.count_N for one in sums.values()]
    if not counts or (counts[0] > 0).sum() < FEWEST_RECORDS:
        return Bootstrap({}, 0, draws.level)
    return bootstrap("tokens", sums, np.arange(len(counts[0])), draws)


def _measured(sums: Mapping[str, TokenSums], drawn: Bootstrap) -> dict[str, dict[str, Any]]:
    rows = {}
    for name, one in sums.items():
        values = measured("tokens", one)
        interval = drawn.intervals(name).get("loss")
        rows[name] = {"loss": values.pop("loss"), "interval": interval, **values}
    return rows


def _compare(sums: Mapping[str, TokenSums], drawn: Bootstrap) -> dict[str, Any] | None:
    """The model's loss minus that before training, on the same resamples."""
    if not drawn.values:
        return None
    interval = drawn.difference("loss", MODEL, BEFORE)
    return {
        "loss_difference": sums[MODEL].loss - sums[BEFORE].loss,
        "interval": interval,
        "verdict": f"{MEASURES['loss'].verdict(interval)} before training",
    }


def _by_file(scores: LanguageScores) -> list[dict[str, Any]]:
    counts = np.add.reduceat(scores.model.count_N, list(scores.files.values()))
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
