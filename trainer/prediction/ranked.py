"""Scored functions, kept on disk: 16 bytes of each are in memory."""

import json
from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile

import numpy as np


@dataclass(frozen=True, slots=True)
class ScoredFunction:
    """What the model says of a function of a file.

    Attributes:
        file: Name below the root of the walk.
        function: Its title, with the class around it.
        score: Meets the threshold.
        probability: The score at the temperature of validation; where none was fitted, the score.
        answer: The classes that are found in it, without those that say "nothing found".
        scores: Of every class.
        num_tokens: Of its whole text.
        fingerprint: Stays when lines above it move.
        is_suppressed: Its text says "focaltune: ignore".
    """

    file: str
    line: int
    end_line: int
    function: str
    language: str
    score: float
    probability: float
    answer: list[str]
    scores: dict[str, float]
    num_tokens: int
    fingerprint: str
    is_suppressed: bool

    @property
    def is_finding(self) -> bool:
        """Whether somebody should look at it."""
        return bool(self.answer) and not self.is_suppressed


class Ranked(AbstractContextManager["Ranked"]):
    """Functions in order of their scores, the highest first; equal ones as they were added."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 this object is its context
        self._starts, self._scores = array("q"), array("d")

    def __len__(self) -> int:
        """Number of functions."""
        return len(self._scores)

    def __exit__(self, *_: object) -> None:
        """Remove the file."""
        self._file.close()

    def add(self, one: ScoredFunction) -> None:
        """Add a function."""
        self._starts.append(self._file.seek(0, 2))
        self._scores.append(one.score)
        self._file.write(json.dumps(asdict(one)).encode() + b"\n")

    def __iter__(self) -> Iterator[ScoredFunction]:
        """The functions by rank."""
        for place in np.argsort(-np.array(self._scores), kind="stable").tolist():
            self._file.seek(self._starts[place])
            yield ScoredFunction(**json.loads(self._file.readline()))
