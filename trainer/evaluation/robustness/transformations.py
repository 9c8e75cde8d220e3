"""Changes of a function's text that do not change what it does.

Each is a pure function of the text and a seed, and its result parses again, as what it was before.
Where it does not, or where there is nothing to change, a function counts as unchanged.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from trainer.evaluation.robustness.languages import Edit, Parsed, parsed
from trainer.evaluation.robustness.layout import laid_out_anew, without_comments
from trainer.evaluation.robustness.names import renamed
from trainer.evaluation.robustness.statements import in_other_order, with_dead_code

_COMMENT = re.compile(r" (\w+: )?\((line_|block_)?comment\)")


@dataclass(frozen=True)
class Transformation:
    """One change.

    Attributes:
        edits: Makes it, in a parsed function; nothing where there is nothing to change.
        keeps: What stays of the tree's text.
    """

    edits: Callable[[Parsed, random.Random], list[Edit]]
    keeps: Callable[[str], str]


TRANSFORMATIONS: dict[str, Transformation] = {
    "names": Transformation(renamed, str),
    "comments": Transformation(without_comments, lambda shape: _COMMENT.sub("", shape)),
    "layout": Transformation(laid_out_anew, str),
    "dead code": Transformation(with_dead_code, lambda _: ""),
    "order": Transformation(in_other_order, lambda _: ""),
}


def transformed(code: Parsed, name: str, seed: int = 0) -> str | None:
    """The function after a transformation; None where it is unchanged."""
    one = TRANSFORMATIONS[name]
    rng = random.Random(f"{seed}:{name}:{code.source.decode()}")
    text = code.edited(one.edits(code, rng))
    if text.encode() == code.source[slice(*code.inside)]:
        return None
    again = parsed(text, code.language)
    if again is None or one.keeps(again.shape) != one.keeps(code.shape):
        return None
    return text
