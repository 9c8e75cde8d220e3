"""Comments, indentation and braces: what a compiler does not read."""

import random
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer.evaluation.robustness.languages import Edit, Parsed, holds

if TYPE_CHECKING:
    from tree_sitter import Node

_INDENT = re.compile(rb"^[ \t]+(?=[^\s])", re.MULTILINE)
_LINE_END = re.compile(rb"\r?\n|\r")
_BLANKS = b" \t"


def without_comments(code: Parsed, _: random.Random) -> list[Edit]:
    """Every comment taken away, with its lines where nothing else is on them.

    A docstring is a value and stays; so does what a preprocessor or a template string holds.
    """
    comments, runs = code.nodes("comment"), list[tuple[int, int]]()
    opaque = {node.id: node for node in code.nodes("opaque")}
    for node in comments:
        opaque.pop(node.id)
    for node in comments:
        if any(holds(other, node) for other in opaque.values()):
            continue
        start, end = node.start_byte, node.end_byte
        if runs and not code.source[runs[-1][1] : start].strip(_BLANKS):
            start = runs.pop()[0]  # comments side by side are one
        runs.append((start, end))
    return [_taken_away(code, start, end) for start, end in runs]


def _taken_away(code: Parsed, start: int, end: int) -> Edit:
    source, (first, last) = code.source, code.inside
    left = len(source[:start].rstrip(_BLANKS))
    right = len(source) - len(source[end:].lstrip(_BLANKS))
    begins = left == first or source[left - 1 : left] in (b"\n", b"\r")
    line_end = _LINE_END.match(source, right)
    if begins and line_end:
        return left, min(line_end.end(), last), b""
    if begins or line_end or right == last:
        return start if begins else left, right, b""
    # A line end inside a comment can end a statement of JavaScript.
    is_line_end = code.language == "javascript" and _LINE_END.search(source, start, end)
    return left, right, b"\n" if is_line_end else b" "


def laid_out_anew(code: Parsed, _: random.Random) -> list[Edit]:
    """Another indentation, and the brace of every body on its line's end or on a line of its own.

    Each brace changes from one to the other.
    """
    opaque = [(node.start_byte, node.end_byte) for node in code.nodes("opaque")]

    def is_content(place: int) -> bool:
        return any(start < place < end for start, end in opaque)

    found = [m for m in _INDENT.finditer(code.source) if not is_content(m.start())]
    style = _other_style({indent[0] for indent in found})
    braces = [_moved(code, node, style, is_content) for node in code.nodes("brace")]
    gaps = [(start, end) for start, end, _ in braces]
    return braces + [
        (m.start(), m.end(), style(m[0]))
        for m in found
        if not any(start < m.start() < end for start, end in gaps)
    ]


def _other_style(indents: set[bytes]) -> Callable[[bytes], bytes]:
    """A change of indents that keeps which are equal and which go on from which."""
    if all(not indent.strip(b"\t") for indent in indents):
        return lambda indent: indent.replace(b"\t", b"    ")
    if all(not indent.strip(b" ") and len(indent) % 4 == 0 for indent in indents):
        return lambda indent: indent.replace(b"    ", b"\t")
    return lambda indent: re.sub(rb"(.)", rb"\1\1", indent)


def _moved(
    code: Parsed,
    brace: "Node",
    style: Callable[[bytes], bytes],
    is_content: Callable[[int], bool],
) -> Edit:
    source, end = code.source, brace.start_byte
    start = len(source[:end].rstrip())
    if b"\n" in source[start:end]:
        return (end, end, b"") if is_content(start - 1) else (start, end, b" ")
    statement = brace.parent and brace.parent.parent
    assert statement is not None
    line = source.rfind(b"\n", 0, statement.start_byte) + 1
    indent = _INDENT.match(source, line)
    return start, end, b"\n" + (style(indent[0]) if indent else b"")
