"""Classification: validation chooses the best step and the threshold; the report uses both."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data.batches.sampling import at_most
from data.prepared.prepare import Split
from data.records import CodeSample
from trainer.config.threshold import ThresholdRule
from trainer.evaluation.best_step import deciding_score
from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.baselines import (
    LEARNED,
    Baseline,
    Learned,
    constant_baselines,
)
from trainer.evaluation.functions.metrics import (
    choose_threshold,
    classification_metrics,
    temperature_of,
)
from trainer.evaluation.functions.predictions import DROPPED, Prediction
from trainer.evaluation.functions.report import write_function_report
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

    _learned: Learned | None = None

    def begin(self) -> None:
        """Nothing: the baselines are learned at the end."""

    def validate(self, step: int) -> Validation:
        """Score the validation split; the deciding score, the threshold and the temperature."""
        valid = self.prepared.splits["valid"]
        scores_NC, loss = validation_scores(self)
        scores_N = scores_NC[:, 1]
        scored_P = population(valid.examples, self.config.replication.compat_population)
        scores_P, targets_P = scores_N[scored_P], np.array(valid.targets)[scored_P]
        rule = self.config.eval.threshold
        threshold, is_kept = choose_threshold(scores_P, targets_P, ThresholdRule.of(rule))
        values = classification_metrics(scores_P, targets_P, threshold) | {"loss": loss}
        self.log_validation(step, "functions", values, loss=loss, threshold=threshold)
        if self.log is not None:
            self.log.pr_curve("valid", targets_P, scores_P, step)
        counts = {name: values[name] for name in ("tn", "fp", "fn", "tp")}
        temperature = temperature_of(scores_P, targets_P)
        decision = Decision(threshold, (), rule, is_kept, temperature, counts)
        return Validation(deciding_score("functions", values, self.config.eval.metric), decision)

    def test(
        self, split: Split, name: str, decision: Decision, facts: Mapping[str, Any]
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
                "base_rate": self.config.eval.base_rate,
            }
            rows = predictions(split, scores_N, decision.threshold, scored_P)
            folder, names = self.config.output_dir / REPORT, self.prepared.classes.shown
            return write_function_report(
                folder, name, rows, decision, baselines, all_facts, names=names,
                text_of=lambda place: split.samples[int(scored_P[place])].text,
            )  # fmt: skip

        return write

    def leave(self, folder: Path) -> None:
        """Leave what the baselines learned, so that they need no data later."""
        if self._learned is not None:
            self._learned.save(folder, self._origin())

    def _baselines(
        self, split: Split, scored_P: npt.NDArray[np.int64]
    ) -> tuple[dict[str, Baseline], int]:
        """The baselines on some functions of a split, and how many functions they learned from."""
        constant = constant_baselines(float(self.prepared.prior_C[1]), len(scored_P))
        if self._learned is None and self.baselines is not None:
            self._learned = Learned.load(self.baselines, self._origin())
        if self._learned is None and "train" in self.prepared.splits:
            self._learned = self._learn()
        if self._learned is None:
            return constant, 0
        codes, _ = _codes_and_labels(split, scored_P)
        learned = {
            name: Baseline(scorer(codes), threshold)
            for name, (scorer, threshold) in self._learned.scorers.items()
        }
        return learned | constant, self._learned.num_functions

    def _origin(self) -> dict[str, Any]:
        """What the baselines follow from."""
        digests = {name: self.prepared.digests[name] for name in ("train", "valid")}
        compat = self.config.replication.compat_population
        return digests | {"rule": self.config.eval.threshold, "compat_population": compat}

    def _learn(self) -> Learned:
        """Fit the baselines on train and choose their thresholds on valid, as the model's."""
        train, valid = self.prepared.splits["train"], self.prepared.splits["valid"]
        learned_F = at_most(MOST_BASELINE_FUNCTIONS, len(train.samples))
        train_set = _codes_and_labels(train, learned_F)
        valid_P = population(valid.examples, self.config.replication.compat_population)
        valid_codes, valid_labels = _codes_and_labels(valid, valid_P)
        rule, scorers = ThresholdRule.of(self.config.eval.threshold), {}
        for name, learn in LEARNED.items():
            scorer = learn(*train_set)
            threshold, _ = choose_threshold(scorer(valid_codes), valid_labels, rule)
            scorers[name] = scorer, threshold
        return Learned(scorers, len(learned_F))


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
    rows = Counter(sample.origin for sample in split.samples)
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
            project=sample.project,
            language=sample.language,
            pair=_pair(sample, is_from_one_row=rows[sample.origin] == 2),
        )
        for sample, score, num_tokens, is_seen, is_member in zip(
            split.samples, *(column.tolist() for column in columns), strict=True
        )
        if is_member
    ]


def _pair(sample: CodeSample, *, is_from_one_row: bool) -> str:
    """What a vulnerable function and its fix share: their row, or commit and function name."""
    if is_from_one_row:
        return sample.origin
    return (
        f"{sample.commit} {sample.function_name}" if sample.commit and sample.function_name else ""
    )


def _codes_and_labels(split: Split, places: npt.NDArray[np.int64]) -> tuple[list[str], list[int]]:
    # One by one: taking from the column would first join all of it in memory.
    codes = [split.samples[place].text for place in places.tolist()]
    return codes, [split.targets[place] for place in places.tolist()]
