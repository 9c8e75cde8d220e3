"""Language tasks: loss on validation picks the step; the report compares with before training."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from data.batches.sampling import at_most
from data.prepared.prepare import Split
from data.text.tokenization import ExampleSet
from trainer.evaluation.best_step import deciding_score
from trainer.evaluation.decision import Decision
from trainer.evaluation.language.report import LanguageScores, sample_page, write_language_report
from trainer.evaluation.language.sums import TokenSums
from trainer.evaluation.language.tokens import score_tokens, token_digests, unigram_loss
from trainer.evaluation.measures import measured
from trainer.evaluation.scoring import Evaluation, Validation
from trainer.generation.decoding import Limits, Prompt, Writer
from trainer.generation.prompts import run_prompts
from trainer.processes.distributed import agreed
from trainer.run_folder.folder import LOG, REPORT, write_arrays
from trainer.run_folder.metrics import read_log

_MOST_SHOWN = 2000  # tokens of a text
_BEFORE = "before_training.npz"


class LanguageEvaluation(Evaluation):
    """Evaluation of a run that learns tokens."""

    _answered: tuple[int, list[dict[str, Any]]] | None = None  # step and answers of the last one

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Prompts that the model answers at every validation."""
        if not self.prepared.splits and not self.config.eval.prompts:
            return []
        return run_prompts(self.config, self.prepared)

    def begin(self) -> None:
        """Measure validation and test, or eval.before records of them, before the first step.

        Adapters change nothing yet, so this measures the base; with tuning.init_from the adapter
        it names, with P-Tuning the base behind untrained virtual tokens.
        """
        if (wanted := self.config.eval.before) == "none":
            return
        splits = self.prepared.splits
        valid, test = (sampled(splits[name], wanted) for name in ("valid", "test"))
        self._log_validation(0, self._score(valid))
        if self.log is not None and valid is not splits["valid"]:
            self.log.say(f"  of {wanted} validation records, always the same (eval.before)")
        sums = self._score(test)
        digest = np.frombuffer(self.prepared.digests["test"].encode(), np.uint8)

        def write() -> None:
            if self.ranks.is_main:
                write_arrays(self.config.output_dir / _BEFORE, vars(sums) | {"sha256": digest})

        agreed(self.ranks, write)

    def validate(self, step: int) -> Validation:
        """Loss, perplexity, token accuracy and a few answers."""
        sums, samples = self._score(self.prepared.splits["valid"]), self.answers()
        self._answered = step, samples
        self._log_validation(step, sums)
        if self.log is not None:
            self.log.samples(samples, [sample_page(sample) for sample in samples], step)
        values = measured("tokens", sums)
        return Validation(deciding_score("tokens", values, self.config.eval.metric))

    def test(
        self, split: Split, name: str, decision: Decision, facts: Mapping[str, Any]
    ) -> Callable[[], dict[str, Any]]:
        """Score a split; the report compares the model with itself before training."""
        model = self._score(split)
        last = self._answered  # by these weights, where the best step is the last
        samples = last[1] if last and last[0] == facts["best_step"] else self.answers()
        train, vocab_size = self.prepared.splits.get("train"), self.prepared.tokenizer.vocab_size
        return lambda: write_language_report(
            self.config.output_dir / REPORT,
            name,
            LanguageScores(
                ids=split.samples.column("id").to_pylist(),
                digests=token_digests(split.examples),
                model=model,
                before=self._before(split),
                unigram=unigram_loss(train.examples, split.examples, vocab_size) if train else None,
                files=split.files,
                samples=samples,
                curves=self._curves(),
                text_of=partial(self._text, split.examples),
            ),
            facts,
        )

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self.model, self.ranks.device)

    def answers(self) -> list[dict[str, Any]]:
        """The model's answers to the run's prompts."""
        config, is_first = self.config, self._writer.most is None
        limits = Limits(
            config.data.seq_length,
            config.eval.max_new_tokens,
            config.eval.temperature,
            config.run.seed,
        )
        answers = self._writer.write(self.prompts, limits)
        if is_first and self._writer.line and self.log is not None:
            self.log.say(f"  {self._writer.line}")
        return [self._sample(*pair) for pair in zip(self.prompts, answers, strict=True)]

    def _score(self, split: Split) -> TokenSums:
        return score_tokens(self.outputs(split), split.examples, self.ranks)

    def _log_validation(self, step: int, sums: TokenSums) -> None:
        self.log_validation(step, "tokens", measured("tokens", sums))
        files = self.prepared.splits["valid"].files
        if self.log is not None and len(files) > 1:
            self.log.files("valid_file", sums.by_file(files), step)

    def _before(self, split: Split) -> TokenSums | None:
        """What `begin` measured, if on this split."""
        path = self.config.output_dir / _BEFORE
        if self.config.eval.before == "none" or not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            same = arrays["sha256"].tobytes().decode() == self.prepared.digests["test"]
            if not same or split is not self.prepared.splits.get("test"):
                return None
            return TokenSums(arrays["nll_N"], arrays["correct_N"], arrays["count_N"])

    def _curves(self) -> dict[str, list[tuple[float, float]]]:
        """Training and validation loss of the run so far."""
        path = self.config.output_dir / LOG
        return {
            f"{kind} loss": [(row["step"], row["loss"]) for row in read_log(path, kind)]
            for kind in ("train", "valid")
        }

    def _text(self, examples: ExampleSet, record: int) -> str:
        """The beginning of a record as the model read it."""
        example = int(np.argmax(np.asarray(examples.record_E) == record))
        tokens = examples.tokens[examples.starts[example] : examples.starts[example + 1]]
        return self.prepared.tokenizer.decode(tokens[:_MOST_SHOWN].tolist())

    def _sample(self, prompt: Prompt, answer: list[int]) -> dict[str, Any]:
        tokenizer = self.prepared.tokenizer
        ended = bool(answer) and answer[-1] in prompt.ends
        return {
            "prompt": prompt.text,
            "answer": tokenizer.decode(answer[:-1] if ended else answer),
            "reference": prompt.reference,
            "ended": ended,
        }


def sampled(split: Split, wanted: int | Literal["all"]) -> Split:
    """A split with the examples of some of its records, always the same ones, or with all."""
    record_E = split.examples.record_E
    records = np.unique(record_E)
    if wanted == "all" or len(records) <= wanted:
        return split
    chosen_E = np.isin(record_E, records[at_most(wanted, len(records))])
    return replace(split, examples=split.examples.subset(np.flatnonzero(chosen_E)))
