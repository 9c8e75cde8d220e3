"""Which names of a function are its own, and new names for them."""

import random
import re
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from trainer.evaluation.robustness.languages import Edit, Parsed, holds

if TYPE_CHECKING:
    from tree_sitter import Node

_WORD = re.compile(r"[^\W\d][\w$]*|\$[\w$]*")
_POSITIONAL = {"c", "cpp", "java"}  # a name holds after its declaration only
# New names; none is a keyword, a type or a function of a standard library.
_NAMES = (
    "acorn", "birch", "cedar", "daisy", "ember", "fjord", "grove", "heron", "inlet", "jetty",
    "knoll", "larch", "maple", "nymph", "olive", "pearl", "quill", "raven", "sedge", "thorn",
    "umber", "vapor", "wheat", "yucca", "zebra",
)  # fmt: skip


def own_names(code: Parsed) -> dict[str, list["Node"]]:
    """The local variables and parameters of a function, with every place where each stands.

    A name is left out where one of its places may mean something else: a global variable, a
    function, a type, a macro's argument, a field. All places of a name get the same new name, so
    that a declaration which hides another goes on hiding it.
    """
    if code.nodes("frozen"):
        return {}
    fixed = {word for node in code.nodes("fixed") for word in _WORD.findall(_text(node))}
    given, parameters = ({_text(n) for n in code.nodes(c)} for c in ("keyword", "parameter"))
    fixed |= given & parameters
    scopes = {node.id for name in ("scope", "wall") for node in code.nodes(name)}
    walls = {node.id: node for node in code.nodes("wall")}
    declared: dict[str, list[tuple[int, Node]]] = {}
    for node in code.nodes("declared"):
        scope = _around(node, scopes)
        if scope is None or scope.id in walls:
            fixed.add(_text(node))
        else:
            declared.setdefault(_text(node), []).append((node.start_byte, scope))
    early = [(node, _around(node, scopes)) for node in code.nodes("outside")]
    is_positional = code.language in _POSITIONAL

    def is_seen(place: int, scope: "Node", node: "Node") -> bool:
        is_early = any(
            around is not None and around.id == scope.id and holds(part, node)
            for part, around in early
        )
        is_walled = any(holds(w, node) and not holds(w, scope) for w in walls.values())
        is_declared = not is_positional or place <= node.start_byte
        return is_declared and holds(scope, node) and not is_early and not is_walled

    others = {node.id for node in code.nodes("other")}
    found: dict[str, list[Node]] = {}
    for node in code.nodes("name"):
        name = _text(node)
        if node.id in others or name in fixed or name not in declared:
            continue
        if any(is_seen(place, scope, node) for place, scope in declared[name]):
            found.setdefault(name, []).append(node)
        else:
            fixed.add(name)
    return {name: nodes for name, nodes in found.items() if name not in fixed}


def renamed(code: Parsed, rng: random.Random) -> list[Edit]:
    """Every local variable and parameter under a name that the text does not have."""
    fresh = fresh_names(code, rng)
    return [
        (node.start_byte, node.end_byte, new.encode())
        for new, nodes in zip(fresh, own_names(code).values(), strict=False)
        for node in nodes
    ]


def fresh_names(code: Parsed, rng: random.Random) -> Iterator[str]:
    """Names that the text does not have, without end."""
    taken = set(_WORD.findall(code.source.decode()))
    for number in count():
        for name in rng.sample(_NAMES, len(_NAMES)):
            if (new := f"{name}{number or ''}") not in taken:
                yield new


def _text(node: "Node") -> str:
    assert node.text is not None
    return node.text.decode()


def _around(node: "Node", ids: set[int]) -> "Node | None":
    """The innermost of some nodes that holds this one."""
    found = node.parent
    while found is not None and found.id not in ids:
        found = found.parent
    return found
