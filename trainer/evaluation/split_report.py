"""The report of a split: the model beside the baselines on the whole test split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.prepare import Split
from trainer.evaluation.baselines import (
    TFIDF_LOGISTIC,
    constant_baselines,
    tfidf_baseline,
    tfidf_logistic,
)
from trainer.evaluation.report import DROPPED, Prediction, write_report


def predictions(
    split: Split, scores_N: npt.NDArray[np.float64], threshold: float
) -> list[Prediction]:
    """One prediction for every function of a split, with its origin."""
    examples = split.examples
    num_tokens = np.bincount(
        examples.record_E, weights=examples.lengths, minlength=examples.num_records
    )
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
            num_tokens=int(tokens),
            note="" if tokens else DROPPED,
        )
        for sample, score, tokens in zip(split.samples, scores_N, num_tokens, strict=True)
    ]


def write_split_report(
    folder: Path,
    name: str,
    split: Split,
    scores_N: npt.NDArray[np.float64],
    threshold: float,
    train: Split,
    valid: Split,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Report of a split; every threshold, also the baseline's, comes from validation.

    Returns:
        The content of <name>.json.
    """
    scorer = tfidf_logistic([sample.code for sample in train.samples], train.targets)
    valid_codes = [sample.code for sample in valid.samples]
    codes = [sample.code for sample in split.samples]
    baselines = {
        TFIDF_LOGISTIC: tfidf_baseline(scorer, valid_codes, valid.targets, codes),
        **constant_baselines(train.targets, split.targets),
    }
    return write_report(
        folder,
        name,
        predictions(split, scores_N, threshold),
        threshold,
        "highest F1 on validation",
        baselines,
        facts,
    )
