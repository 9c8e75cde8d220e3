"""Statements that do nothing, and neighbours in the other order."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.evaluation.robustness.languages import Edit, Parsed, holds
from trainer.evaluation.robustness.names import fresh_names, own_names

if TYPE_CHECKING:
    from tree_sitter import Node

_JAVASCRIPT = ("let {name} = {number};", "if ({name} < 0) {{", "{tab}{name} += 1;", "}}")
_C = ("int {name} = {number};", *_JAVASCRIPT[1:])
_PYTHON = ("{name} = {number}", "if {name} < 0:", "{tab}{name} += 1")
_DEAD = {"python": _PYTHON, "javascript": _JAVASCRIPT, "java": _C, "c": _C, "cpp": _C}


def with_dead_code(code: Parsed, rng: random.Random) -> list[Edit]:
    """A variable of its own and a branch that is never taken, before a statement of the body.

    They come after what has to be first in a body, and first where a goto could jump over them.
    """
    apart = {node.id for node in code.nodes("apart")}
    statements = [n for n in code.nodes("body")[0].named_children if n.id not in apart]
    if not statements or code.nodes("frozen"):  # a frozen text may read all its variables
        return []
    place = rng.choice(statements[:1] if code.nodes("jump") else statements).start_byte
    indent = code.source[code.source.rfind(b"\n", 0, place) + 1 : place]
    is_alone = not indent.strip()
    if code.language == "python" and not is_alone:
        return []
    end = b"\n" + indent if is_alone else b" "
    values = {"name": next(fresh_names(code, rng)), "number": rng.randrange(2, 100)}
    values["tab"] = ("\t" if indent[:1] == b"\t" else "    ") if is_alone else ""
    dead = [text.format(**values).encode() for text in _DEAD[code.language]]
    return [(place, place, end.join(dead) + end)]


@dataclass(frozen=True)
class _Step:
    """A statement with the variables that it names, and those of them that it changes."""

    node: "Node"
    names: frozenset[str]
    written: frozenset[str]


def in_other_order(code: Parsed, _: random.Random) -> list[Edit]:
    """Neighbours swapped, each statement at most once, where nobody can see which came first.

    Both are declarations or assignments of local variables, made of these, literals and arithmetic
    that cannot fail; neither changes a variable that the other one names.
    """
    is_watched = any(holds(b, w) for b in code.nodes("body") for w in code.nodes("watcher"))
    if is_watched or b"volatile" in code.source or b"_Atomic" in code.source:
        return []
    own, plain = set(own_names(code)), _texts(code.nodes("plain"))
    ids = {c: {n.id for n in code.nodes(c)} for c in ("movable", "harmless", "numeric")}
    changed = [*code.nodes("declared"), *code.nodes("target")]

    def step(node: "Node") -> _Step | None:
        inner = _below(node) if node.id in ids["movable"] else []
        if not inner or any(n.id not in ids["harmless"] for n in inner):
            return None
        names = _texts(n for n in inner if n.type == "identifier")
        written = _texts(n for n in changed if holds(node, n))
        # Java's null, as a number, is an error.
        needs_numbers = written & plain or any(n.id in ids["numeric"] for n in inner)
        is_safe = names <= own and (names <= plain or not needs_numbers)
        return _Step(node, names, written) if is_safe else None

    edits: list[Edit] = []
    for block in code.nodes("block"):
        before: _Step | None = None
        for node in block.named_children:
            after = step(node)
            shared = before.names & after.names if before and after else frozenset()
            if before and after and not shared & (before.written | after.written):
                edits += _exchanged(code.source, before.node, after.node)
                after = None
            before = after
    return edits


def _exchanged(source: bytes, one: "Node", two: "Node") -> list[Edit]:
    first, second = (slice(node.start_byte, node.end_byte) for node in (one, two))
    return [
        (first.start, first.stop, source[second]),
        (second.start, second.stop, source[first]),
    ]


def _below(node: "Node") -> list["Node"]:
    found = list(node.named_children)
    for one in found:  # it grows
        found += one.named_children
    return found


def _texts(nodes: "Iterable[Node]") -> frozenset[str]:
    return frozenset(node.text.decode() for node in nodes if node.text is not None)
