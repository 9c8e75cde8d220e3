"""A source tree -> scored functions, chunk by chunk: memory does not grow with the tree."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.text import terminal
from trainer.evaluation.functions.metrics import at_temperature
from trainer.evaluation.robustness.measures import answers
from trainer.models.heads import PackedModel
from trainer.prediction.about import found_classes
from trainer.prediction.changes import Lines
from trainer.prediction.extraction import MOST_BYTES, Function, functions_of, source_text
from trainer.prediction.fingerprints import fingerprints
from trainer.prediction.ranked import ScoredFunction
from trainer.prediction.scoring import score_chunk
from trainer.prediction.walking import Walk, read_file
from trainer.processes.distributed import Ranks
from trainer.run.trained import Trained

_CHUNK = 1024  # functions that are packed and scored together
_CHUNK_CHARACTERS = 1 << 24  # a chunk ends earlier when it holds this much text
_SUPPRESSED = re.compile(r"\bfocaltune:\s*ignore\b")
_TOO_LONG = "functions too long for the model (data.long_functions, data.max_function_bytes)"


@dataclass
class Tree:
    """What is read of a source tree; reading it fills the counts.

    Attributes:
        lines: Only functions that touch these are read; None for all.
        skipped: What is passed over, by reason.
        num_by_language: Functions that were scored.
        num_files: That hold one of them.
    """

    walk: Walk
    lines: Lines | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    num_by_language: Counter[str] = field(default_factory=Counter)
    num_files: int = 0

    def functions(self) -> Iterator[tuple[str, Function, str]]:
        """File, function and fingerprint, in the order of the walk."""
        num = sum(1 for _ in self.walk.files()) if terminal.is_live() else None
        for file in terminal.tracked(self.walk.files(), "files", num):
            lines = None if self.lines is None else self.lines.get(file.name, ())
            if lines is not None and not lines:
                continue
            raw = read_file(file, MOST_BYTES, self.skipped)
            if raw is None:
                continue
            text = source_text(raw, self.skipped, every=self.walk.every)
            if text is None:
                continue
            functions = functions_of(text, file.languages, self.skipped)
            marked = zip(functions, fingerprints(file.name, functions), strict=True)
            kept = [one for one in marked if lines is None or _touches(one[0], lines)]
            self.num_files += bool(kept)
            yield from ((file.name, function, mark) for function, mark in kept)


def _touches(function: Function, lines: Sequence[tuple[int, int]]) -> bool:
    return any(function.first_line <= last and first <= function.last_line for first, last in lines)


def scored_functions(
    tree: Tree,
    trained: Trained,
    model: PackedModel,
    ranks: Ranks,
) -> Iterator[ScoredFunction]:
    """Every function of a tree with its scores; all ranks call this and get the same."""
    temperature, names = trained.decision.temperature, trained.classes.shown
    findings = found_classes(trained.classes)
    answered = [names[1]] if trained.classes.is_binary else names
    for chunk in _chunks(tree.functions()):
        codes = [function.code for _, function, _ in chunk]
        found = score_chunk(trained, model, codes, ranks)
        score_N, answer_NC = answers(found.scores_NC, trained.classes, trained.decision)
        chance_N = score_N if temperature is None else at_temperature(score_N, temperature)
        for place, (file, function, mark) in enumerate(chunk):
            if not found.is_scored_N[place]:
                tree.skipped[_TOO_LONG] += 1
                continue
            tree.num_by_language[function.language] += 1
            answer = [answered[number] for number in np.flatnonzero(answer_NC[place])]
            scores = found.scores_NC[place].tolist()
            yield ScoredFunction(
                file=file,
                line=function.first_line,
                end_line=function.last_line,
                function=function.title,
                language=function.language,
                score=float(score_N[place]),
                probability=float(chance_N[place]),
                answer=[name for name in answer if name in findings],
                scores=dict(zip(names, scores, strict=True)),
                num_tokens=int(found.num_tokens_N[place]),
                fingerprint=mark,
                is_suppressed=_SUPPRESSED.search(function.code) is not None,
            )


def _chunks(
    functions: Iterator[tuple[str, Function, str]],
) -> Iterator[list[tuple[str, Function, str]]]:
    """Chunks that depend on the tree alone."""
    chunk, num_characters = list[tuple[str, Function, str]](), 0
    for one in functions:
        chunk.append(one)
        num_characters += len(one[1].code)
        if len(chunk) == _CHUNK or num_characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk
