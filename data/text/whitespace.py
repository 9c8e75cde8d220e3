"""Which functions normalize_whitespace: collapse would harm.

Collapse makes every run of blanks and line ends one space. Where a line end carries meaning the
function becomes another one: a line comment swallows the code after it, Python loses its blocks, a
preprocessor directive swallows what follows or stops being one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.records import CodeSample
from data.text.scanner import FAMILIES, family

_SHOWN = 3
_DIRECTIVE = re.compile(
    r"^[ \t]*#[ \t]*(?:include|define|undef|ifdef|ifndef|if|elif|else|endif|pragma|error|warning"
    r"|line|region|endregion)\b",
    re.MULTILINE,
)
_BLOCK_OPENS = re.compile(r":[ \t]*\n\s*?[ \t]+\S")  # a colon ends a line, an indented one follows


@dataclass(frozen=True)
class CollapseFacts:
    """Functions that collapse harms; one may count under several kinds.

    Attributes:
        num_functions: Of the split.
        num_examined: Of these, looked at: evenly spaced where there are more than the limit.
        num_harmed: By any kind.
        num_line_comment: A line comment would swallow code that follows it.
        num_indentation: Blocks are made by indentation, which collapse removes.
        num_preprocessor: A directive shares the function with other lines.
        examples: Origins of the first of each kind.
    """

    num_functions: int
    num_examined: int
    num_harmed: int
    num_line_comment: int
    num_indentation: int
    num_preprocessor: int
    examples: dict[str, list[str]]

    def warning(self) -> str:
        """One line for the terminal; "" where nothing is harmed."""
        if not self.num_harmed:
            return ""
        kinds = {
            "a line comment swallows the code after it": self.num_line_comment,
            "indentation is lost": self.num_indentation,
            "a preprocessor line is joined to others": self.num_preprocessor,
        }
        causes = "; ".join(f"{count:,} {cause}" for cause, count in kinds.items() if count)
        return (
            f"normalize_whitespace=collapse changes the meaning of {self.num_harmed:,} of"
            f" {self.num_examined:,} functions ({causes})"
        )


def collapse_damage(samples: Sequence[CodeSample], limit: int = 50_000) -> CollapseFacts:
    """Count the functions that normalize_whitespace: collapse would change in meaning.

    Args:
        samples: Of one split.
        limit: Functions to look at, at most.
    """
    places = np.arange(len(samples))
    if len(samples) > limit:
        places = np.linspace(0, len(samples) - 1, limit).astype(np.int64)
    counts = {"line_comment": 0, "indentation": 0, "preprocessor": 0}
    examples: dict[str, list[str]] = {kind: [] for kind in counts}
    num_harmed = 0
    rows = samples if len(places) == len(samples) else (samples[int(place)] for place in places)
    for sample in rows:
        harms = {harm for code in (sample.code, sample.code2) for harm in collapse_harms(code)}
        num_harmed += bool(harms)
        for kind in sorted(harms):
            counts[kind] += 1
            if len(examples[kind]) < _SHOWN:
                examples[kind].append(sample.origin)
    return CollapseFacts(
        num_functions=len(samples),
        num_examined=len(places),
        num_harmed=num_harmed,
        num_line_comment=counts["line_comment"],
        num_indentation=counts["indentation"],
        num_preprocessor=counts["preprocessor"],
        examples=examples,
    )


def collapse_harms(code: str) -> list[str]:
    """The kinds of harm collapse does to one function: names of CollapseFacts without num_."""
    if "\r" in code:
        code = code.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" not in code.strip():
        return []
    kind = family(code)
    pattern = FAMILIES[kind]
    harms = []
    if ("//" in code or "#" in code) and _swallows(code, pattern):
        harms.append("line_comment")
    if kind == "python" and _BLOCK_OPENS.search(pattern.sub(_blank, code)):
        harms.append("indentation")
    if "#" in code:
        bare = pattern.sub(_blank, code).strip()
        if "\n" in bare and _DIRECTIVE.search(bare):
            harms.append("preprocessor")
    return harms


def _swallows(code: str, pattern: re.Pattern[str]) -> bool:
    """Something other than comments follows the first line comment."""
    last = None  # end of the last string or comment, once a line comment was seen
    for match in pattern.finditer(code):
        if last is not None:
            if match.lastgroup == "text" or code[last : match.start()].strip():
                return True
            last = match.end()
        elif match.lastgroup == "line":
            last = match.end()
    return last is not None and bool(code[last:].strip())


def _blank(match: re.Match[str]) -> str:
    return '""' if match.lastgroup == "text" else " "
