"""A split of functions scored again after each transformation.

Shapes: N functions of the split, P of them changed, M of these measured, C classes, Q pairs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from data.prepared.cache import SplitWriter, open_split
from data.prepared.kinds import FUNCTIONS
from data.prepared.prepare import Split
from data.records import CodeSample
from data.text.terminal import tracked
from data.text.tokenization import ExampleSet
from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.evaluation import class_scores, predictions
from trainer.evaluation.functions.predictions import Prediction
from trainer.evaluation.functions.slices import Pairs
from trainer.evaluation.predictors import Scored
from trainer.evaluation.resampling import USUAL_DRAWS, FloatArray, IntArray
from trainer.evaluation.robustness.languages import languages_of, parsed
from trainer.evaluation.robustness.measures import (
    answers,
    edit_distance,
    pair_facts,
    score_title,
    shift_facts,
)
from trainer.evaluation.robustness.report import write_robustness_report
from trainer.evaluation.robustness.transformations import TRANSFORMATIONS, transformed
from trainer.evaluation.scoring import Evaluation
from trainer.run_folder.folder import REPORT

_CHUNK = 1024  # functions tokenised at a time


@dataclass(frozen=True)
class Rescored:
    """The functions whose tokens a transformation changes.

    Attributes:
        place_M: In the split.
        scores_MC: After the transformation.
        left_out: Functions by the reason why they are not among them.
    """

    place_M: IntArray
    scores_MC: FloatArray
    left_out: Mapping[str, int]


def evaluate_robustness(
    evaluation: Evaluation, split: Split, name: str, decision: Decision, facts: Mapping[str, Any]
) -> Callable[[], dict[str, Any]]:
    """Score a split before and after each transformation; all ranks call this.

    The changed functions are tokenised, packed and dealt to the ranks as any others.

    Returns:
        A function that writes the report, to be called on one rank.
    """
    classes, languages = (
        evaluation.prepared.classes,
        languages_of(tracked(split.samples, "parsing functions", len(split.samples))),
    )
    before_NC = class_scores(evaluation, split)
    rescored = {key: _rescored(evaluation, split, languages, key) for key in TRANSFORMATIONS}

    def write() -> dict[str, Any]:
        score_N, answer_NC = answers(before_NC, classes, decision)
        functions = _functions(split, score_N)
        rows = {}
        for key, one in rescored.items():
            members = [functions[place] for place in one.place_M.tolist()]
            label_M = np.array([p.label for p in members], dtype=np.int64)
            score_M, answer_MC = answers(one.scores_MC, classes, decision)
            before = Scored(score_N[one.place_M], label_M, 0.5)
            after = replace(before, scores_N=score_M)
            flips_M = (answer_MC != answer_NC[one.place_M]).any(axis=1)
            shifts = shift_facts(before, after, flips_M, [p.group or p.origin for p in members])
            rows[key] = {"num": len(members), "left_out": one.left_out, **shifts}
        _, counts = np.unique(answer_NC, axis=0, return_counts=True)
        content = {
            "split": name,
            "score": score_title(classes),
            "num": len(languages),
            "languages": dict(sorted(Counter(languages).items())),
            "largest_answer": counts.max() / len(languages),
            "transformations": rows,
            "pairs": _pairs(split, functions),
            "bootstrap": asdict(USUAL_DRAWS),
            "facts": dict(facts),
        }
        return write_robustness_report(evaluation.config.output_dir / REPORT, content)

    return write


def _functions(split: Split, score_N: FloatArray) -> list[Prediction]:
    """Score, group and pair of every function; label 0 is the first class, or none of several."""
    members_KC, target_N = split.examples.members_KC, np.array(split.targets)
    label_N = target_N > 0 if members_KC is None else members_KC[target_N].any(axis=1)
    every = predictions(split, score_N, 0.5, np.arange(len(score_N)))
    return [replace(p, label=int(label)) for p, label in zip(every, label_N, strict=True)]


def _pairs(split: Split, functions: Sequence[Prediction]) -> dict[str, Any] | None:
    """What the scores of vulnerable functions and their fixes follow; None without a pair."""
    pairs = Pairs.of(functions)
    places_Q2 = np.stack([pairs.vulnerable_Q, pairs.fixed_Q], axis=1)
    places_Q2 = places_Q2[np.isin(places_Q2, split.examples.record_E).all(axis=1)]
    if not len(places_Q2):
        return None
    both = [[functions[place] for place in pair] for pair in places_Q2.tolist()]
    texts = ([split.samples[place].text for place in pair] for pair in places_Q2.tolist())
    return pair_facts(
        np.array([[p.score for p in pair] for pair in both]),
        np.array([edit_distance(*pair) for pair in tracked(texts, "pairs", len(places_Q2))]),
        [vulnerable.group or vulnerable.origin for vulnerable, _ in both],
    )


def _rescored(evaluation: Evaluation, split: Split, languages: Sequence[str], key: str) -> Rescored:
    prepared, place_P = evaluation.prepared, list[int]()

    def changed() -> Iterator[CodeSample]:
        both = zip(split.samples, languages, strict=True)
        num = len(languages)
        for place, (sample, language) in enumerate(tracked(both, f"changing: {key}", num)):
            if language and (new := _changed(sample, language, key)) is not None:
                place_P.append(place)
                yield new

    with TemporaryDirectory() as folder:
        new, samples = Path(folder) / "split", changed()
        with SplitWriter(new, prepared.tokenizer.vocab_size, CodeSample) as writer:
            while chunk := list(islice(samples, _CHUNK)):
                pieces = FUNCTIONS.encode(chunk, prepared.tokenizer, evaluation.config.data)
                writer.append(chunk, pieces)
        _, examples = open_split(new, prepared.tokenizer.vocab_size, CodeSample)
        examples = replace(examples, members_KC=split.examples.members_KC)
        tokens_P2 = [
            (_tokens(split.examples, place), _tokens(examples, number))
            for number, place in enumerate(place_P)
        ]
        is_read_P = np.array([min(map(len, both)) > 0 for both in tokens_P2], np.bool_)
        differs_P = np.array([not np.array_equal(*both) for both in tokens_P2], np.bool_)
        kept_M = np.flatnonzero(is_read_P & differs_P)
        scores_PC = np.zeros((len(place_P), len(prepared.classes.names)))
        if len(kept_M):  # all ranks have the same
            scores_PC = class_scores(evaluation, replace(split, examples=examples))
    left_out = {
        "not parsed": languages.count(""),
        "nothing to change": len(languages) - languages.count("") - len(place_P),
        "too long": int((~is_read_P).sum()),
        "same tokens": int(is_read_P.sum()) - len(kept_M),
    }
    return Rescored(np.array(place_P, dtype=np.int64)[kept_M], scores_PC[kept_M], left_out)


def _changed(sample: CodeSample, language: str, key: str) -> CodeSample | None:
    """A function after a transformation, or a pair of which one changed; None where none did."""
    halves = [parsed(code, language) for code in (sample.code, sample.code2)]
    code, code2 = (half and transformed(half, key) for half in halves)
    if code is None and code2 is None:
        return None
    return sample._replace(code=code or sample.code, code2=code2 or sample.code2)


def _tokens(examples: ExampleSet, record: int) -> npt.NDArray[Any]:
    """The tokens of a record, its windows one after the other; none of a dropped one."""
    first, last = np.searchsorted(examples.record_E, [record, record + 1])
    return examples.tokens[examples.starts[first] : examples.starts[last]]
