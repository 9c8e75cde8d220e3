"""The answers that are farthest from the truth, with their text, for people to read."""

from collections.abc import Callable, Iterator

import numpy as np

from trainer.evaluation.resampling import FloatArray

TextOf = Callable[[int], str]  # of a place among the predictions
_MOST = 20
_MOST_LINES, _MOST_LETTERS = 60, 6000  # of a text


def farthest(distance_N: FloatArray, text_of: TextOf | None) -> Iterator[tuple[int, str]]:
    """Place and beginning of the text of the largest distances, which are above 0.

    Without texts there are none.
    """
    if text_of is None:
        return
    order: list[int] = np.argsort(-distance_N, kind="stable")[:_MOST].tolist()
    for place in order:
        if distance_N[place] > 0:
            yield place, _beginning(text_of(place))


def _beginning(text: str) -> str:
    lines = text.replace("\r\n", "\n").split("\n")
    kept = "\n".join(lines[:_MOST_LINES])[:_MOST_LETTERS]
    return kept if len(kept) == len("\n".join(lines)) else f"{kept}\n..."
