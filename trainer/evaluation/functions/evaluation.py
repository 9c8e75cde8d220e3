"""Classification: validation chooses the best step and the threshold; the report uses both."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data.batches.sampling import at_most
from data.prepared.prepare import Split
from trainer.evaluation.best_step import deciding_score
from trainer.evaluation.functions.baselines import (
    TFIDF_LOGISTIC,
    Baseline,
    constant_baselines,
    tfidf_logistic,
)
from trainer.evaluation.functions.metrics import best_threshold, classification_metrics
from trainer.evaluation.functions.report import (
    DROPPED,
    Prediction,
    write_function_report,
)
from trainer.evaluation.functions.scores import (
    of_functions,
    population,
    score_examples,
    tallied,
    text_digest,
)
from trainer.evaluation.scoring import Evaluation, Outputs, Validation, sum_of_ranks
from trainer.run_folder.folder import REPORT

# The baseline learns from so many functions at most: its matrix of word pairs has to fit in memory.
MOST_BASELINE_FUNCTIONS = 50_000


class FunctionEvaluation(Evaluation):
    """Evaluation of a run that detects vulnerable functions."""

    def begin(self) -> None:
        """Nothing: the baselines are learned at the end."""

    def validate(self, step: int) -> Validation:
        """Score the validation split; the deciding score and the threshold of the highest F1."""
        valid = self.prepared.splits["valid"]
        scores_NC, loss = validation_scores(self)
        scores_N = scores_NC[:, 1]
        scored_P = population(valid.examples, self.config.replication.compat_population)
        scores_P, targets_P = scores_N[scored_P], np.array(valid.targets)[scored_P]
        threshold = best_threshold(scores_P, targets_P)
        values = classification_metrics(scores_P, targets_P, threshold) | {"loss": loss}
        self.log_validation(step, "functions", values, loss=loss, threshold=threshold)
        score = deciding_score("functions", values, self.config.eval.metric)
        return Validation(score, threshold)

    def test(
        self, split: Split, name: str, threshold: float, facts: Mapping[str, Any]
    ) -> Callable[[], dict[str, Any]]:
        """Score a split; the report compares the model with the baselines."""
        scores_N = class_scores(self, split)[:, 1]

        def write() -> dict[str, Any]:
            compat = self.config.replication.compat_population
            scored_P = population(split.examples, compat)
            baselines, num_learned = self._baselines(split, scored_P)
            all_facts = {
                **facts,
                "baseline_functions": num_learned,
                "compat_population": compat,
                "num_left_out": len(split.samples) - len(scored_P),
            }
            rows = predictions(split, scores_N, threshold, scored_P)
            folder, names = self.config.output_dir / REPORT, self.prepared.classes.shown
            return write_function_report(
                folder, name, rows, threshold, baselines, all_facts, names=names
            )

        return write

    def _baselines(
        self, split: Split, scored_P: npt.NDArray[np.int64]
    ) -> tuple[dict[str, Baseline], int]:
        """The baselines on some functions of a split, and how many functions they learned from."""
        constant = constant_baselines(float(self.prepared.prior_C[1]), len(scored_P))
        if "train" not in self.prepared.splits:
            return constant, 0
        train, valid = self.prepared.splits["train"], self.prepared.splits["valid"]
        learned_F = at_most(MOST_BASELINE_FUNCTIONS, len(train.samples))
        scorer = tfidf_logistic(*_codes_and_labels(train, learned_F))
        valid_P = population(valid.examples, self.config.replication.compat_population)
        valid_codes, valid_labels = _codes_and_labels(valid, valid_P)
        threshold = best_threshold(scorer(valid_codes), valid_labels)  # chosen as the model's is
        words = Baseline(scorer(_codes_and_labels(split, scored_P)[0]), threshold)
        return {TFIDF_LOGISTIC: words, **constant}, len(learned_F)


def class_scores(evaluation: Evaluation, split: Split) -> npt.NDArray[np.float64]:
    """Scores (N, C) of every function; those of a dropped one are the shares in training."""
    return _scores(evaluation, split, evaluation.outputs(split))


def validation_scores(evaluation: Evaluation) -> tuple[npt.NDArray[np.float64], float | None]:
    """Scores (N, C) of the validation split, and its loss as training has it, without dropout.

    The loss is a mean over the functions that are not dropped; None without any.
    """
    valid, sums_2 = evaluation.prepared.splits["valid"], torch.zeros(2, dtype=torch.float64)
    assert evaluation.task is not None
    outputs = tallied(evaluation.outputs(valid), evaluation.task, sums_2)
    scores_NC = _scores(evaluation, valid, outputs)
    loss, count = sum_of_ranks(sums_2, evaluation.ranks).tolist()
    return scores_NC, loss / count if count else None


def _scores(evaluation: Evaluation, split: Split, outputs: Outputs) -> npt.NDArray[np.float64]:
    examples, prepared = split.examples, evaluation.prepared
    scores_EC = score_examples(outputs, len(examples), prepared.classes, evaluation.ranks)
    return of_functions(scores_EC, examples, prepared.prior_C, evaluation.config.eval.window_score)


def predictions(
    split: Split,
    scores_N: npt.NDArray[np.float64],
    threshold: float,
    population_P: npt.NDArray[np.int64],
) -> list[Prediction]:
    """One prediction for every function of a population."""
    record_E, num = split.examples.record_E, split.examples.num_records
    seen_N, member_N = (np.isin(np.arange(num), places) for places in (record_E, population_P))
    columns = (scores_N, split.code_lengths, seen_N, member_N)
    return [
        Prediction(
            id=sample.id,
            origin=sample.origin,
            label=sample.target,
            score=score,
            predicted=int(score >= threshold),
            group=sample.commit,
            cwe=sample.cwe,
            status=sample.status,
            num_tokens=max(0, num_tokens),
            note="" if is_seen else DROPPED,
            digest=text_digest(sample.text),
        )
        for sample, score, num_tokens, is_seen, is_member in zip(
            split.samples, *(column.tolist() for column in columns), strict=True
        )
        if is_member
    ]


def _codes_and_labels(split: Split, places: npt.NDArray[np.int64]) -> tuple[list[str], list[int]]:
    # One by one: taking from the column would first join all of it in memory.
    codes = [split.samples[place].text for place in places.tolist()]
    return codes, [split.targets[place] for place in places.tolist()]
