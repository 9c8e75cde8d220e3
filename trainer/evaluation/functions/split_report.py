"""The report of a split: the model beside the baselines on the whole test split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.batches.sampling import at_most
from data.prepared.prepare import Split
from trainer.evaluation.functions.baselines import (
    TFIDF_LOGISTIC,
    constant_baselines,
    tfidf_baseline,
    tfidf_logistic,
)
from trainer.evaluation.functions.report import DROPPED, Prediction, write_report
from trainer.evaluation.functions.validation import population

# The baseline's matrix of word pairs has to fit in memory: of more functions it learns from these.
MOST_BASELINE_FUNCTIONS = 50_000


def predictions(
    split: Split,
    scores_N: npt.NDArray[np.float64],
    threshold: float,
    population_P: npt.NDArray[np.int64],
) -> list[Prediction]:
    """One prediction for every function of a population, with its origin."""
    examples = split.examples
    is_scored = np.zeros(examples.num_records, dtype=bool)
    is_scored[examples.record_E] = True
    is_member = np.zeros(examples.num_records, dtype=bool)
    is_member[population_P] = True
    return [
        Prediction(
            id=sample.id,
            origin=sample.origin,
            label=sample.target,
            score=float(score),
            predicted=int(score >= threshold),
            group=sample.commit,
            cwe=sample.cwe,
            status=sample.status,
            num_tokens=max(0, tokens),
            note="" if scored else DROPPED,
        )
        for sample, score, tokens, scored, member in zip(
            split.samples, scores_N, split.code_lengths.tolist(), is_scored, is_member, strict=True
        )
        if member
    ]


def write_split_report(
    folder: Path,
    name: str,
    split: Split,
    scores_N: npt.NDArray[np.float64],
    threshold: float,
    splits: Mapping[str, Split],
    facts: Mapping[str, Any],
    *,
    compat_population: bool = False,
) -> dict[str, Any]:
    """Report of a split; every threshold, also the baseline's, comes from validation.

    Args:
        folder: Where the files go.
        name: Of the report.
        split: What was scored.
        scores_N: P(vulnerable) of every function.
        threshold: Of the model.
        splits: The baselines learn from "train"; their thresholds come from "valid".
        facts: What the numbers rest on.
        compat_population: Leave dropped functions out.

    Returns:
        The content of <name>.json.
    """
    train, valid = splits["train"], splits["valid"]
    learned_F = at_most(MOST_BASELINE_FUNCTIONS, len(train.samples), seed=0)
    scorer = tfidf_logistic(
        _codes(train, learned_F), [train.targets[place] for place in learned_F.tolist()]
    )
    scored_P, valid_P = (population(s.examples, compat_population) for s in (split, valid))
    valid_targets = [valid.targets[place] for place in valid_P.tolist()]
    baseline = tfidf_baseline(
        scorer, _codes(valid, valid_P), valid_targets, _codes(split, scored_P)
    )
    return write_report(
        folder,
        name,
        predictions(split, scores_N, threshold, scored_P),
        threshold,
        "highest F1 on validation",
        {TFIDF_LOGISTIC: baseline, **constant_baselines(train.targets, scored_P)},
        {
            **facts,
            "baseline_functions": len(learned_F),
            "compat_population": compat_population,
            "num_left_out": len(split.samples) - len(scored_P),
        },
    )


def _codes(split: Split, places: npt.NDArray[np.int64]) -> list[str]:
    # One by one: taking from the column would first join all of it in memory.
    return [split.samples[place].code for place in places.tolist()]
