"""The functions and methods of a source file.

A function is what datasets of functions hold: from its first word to its closing brace, as it
stands in the file. A named function within another is one of its own too; an unnamed one belongs to
the function around it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from data.readers.reading import BOM, not_rows
from trainer.prediction.languages import Language, parser_of

if TYPE_CHECKING:
    from tree_sitter import Node, Tree

MOST_BYTES = 4 << 20  # of a file: what is longer was not written by people
_LEAST_BYTES = 30  # of a text for a step of its parser: code has 47 or more
REPAIRED = "files read with U+FFFD where they are not UTF-8"
_HEAD = 8000  # bytes in which git, too, looks for a NUL
_GENERATED = re.compile(
    rb"^[ \t]*(?://|#|/?\*|--|<!--|;|\"\"\").{0,200}?(?:@generated\b|\bdo not (?:edit|modify)\b"
    rb"|auto(?:matically)?[ -]?generated (?:by|from|file|code)"
    rb"|(?:is|was) auto[a-z]*[ -]?generated)",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER = 2000  # bytes in which a generator says that it wrote the file
_LONG_LINE = 300  # bytes of a mean line of a minified file
_NAMED = ("name", "operator", "type")  # fields that name what is declared: the last that of impl
_NAMES = ("name", "left", "key", "property")  # fields that name a function which is their value
_AROUND_VALUE = ("parenthesized_expression", "expression_list")
_NO_FUNCTIONS = (b"namespace", b"inline namespace", b'extern "')  # which macros make look like one
_SPACE = re.compile(r"\s+")
_RECEIVER = re.compile(r"(\w+)\s*(?:\[[^\]]*\])?\s*\)$")


@dataclass(frozen=True, slots=True)
class Function:
    """A function of a file.

    Attributes:
        name: "" where it has none.
        container: The class around it, outer ones first: "Outer.Inner".
        language: As `Language.shown`.
        first_line, last_line: Counted from 1.
        code: As it stands in the file.
    """

    name: str
    container: str
    language: str
    first_line: int
    last_line: int
    code: str

    @property
    def title(self) -> str:
        """Name with its class, for people."""
        name = self.name or "(unnamed)"
        return f"{self.container}.{name}" if self.container else name


def source_text(raw: bytes, skipped: Counter[str], *, every: bool) -> str | None:
    """A file as the readers of training data have it; None where it is skipped and counted.

    The mark of UTF-8 goes, line ends stay, and what is not UTF-8 becomes U+FFFD, as with
    data.encoding_errors=replace.

    Args:
        raw: Its bytes.
        skipped: Reasons, counted.
        every: Generated files, too.
    """
    if len(raw) > MOST_BYTES:
        skipped[f"above {MOST_BYTES >> 20} MiB"] += 1
        return None
    if not_rows(raw[:64]) or b"\0" in raw[:_HEAD]:
        skipped["not text in UTF-8"] += 1
        return None
    raw = raw.removeprefix(BOM)
    if not every and _is_generated(raw):
        skipped["generated"] += 1
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        skipped[REPAIRED] += 1
        return raw.decode("utf-8", "replace")


def _is_generated(raw: bytes) -> bool:
    is_minified = len(raw) > _HEADER and len(raw) > _LONG_LINE * (raw.count(b"\n") + 1)
    return is_minified or _GENERATED.search(raw, 0, _HEADER) is not None


def functions_of(text: str, languages: Sequence[Language], skipped: Counter[str]) -> list[Function]:
    """The whole functions of a file, in the order of their first lines.

    A function with a syntax error, or within one, is counted and left out. Where a file can be in
    several languages, it is in the first that takes all of it, else in that of the most functions.
    """
    source = text.encode("utf-8")
    best: tuple[list[Function], int, bool] | None = None
    for language in languages:
        tree = _parsed(source, language)
        if tree is None:
            continue
        found, num_broken = _functions(tree, source, language)
        has_error = tree.root_node.has_error
        if best is None or not has_error or len(found) > len(best[0]):
            best = found, num_broken, has_error
        if not has_error:
            break
    if best is None:
        skipped["files that no parser takes"] += 1
        return []
    found, num_broken, has_error = best
    if num_broken:
        skipped["functions with a syntax error"] += num_broken
    if has_error:
        skipped["parts of files with a syntax error"] += 1
    return found


def _parsed(source: bytes, language: Language) -> "Tree | None":
    """The tree of a file; None where a text of a thousand meanings would take gigabytes."""
    parser, _ = parser_of(language)
    steps = count()

    def is_hopeless(offset: int, _: bool) -> bool:
        return next(steps) > (offset + 4000) / _LEAST_BYTES

    try:
        # In pieces: a callback that gave all of the rest would copy it every time.
        return parser.parse(
            lambda place, _: source[place : place + 65_536], progress_callback=is_hopeless
        )
    except ValueError:  # given up
        parser.reset()
        return None


def _functions(tree: "Tree", source: bytes, language: Language) -> tuple[list[Function], int]:
    """Functions that are whole, and how many are not."""
    kinds = parser_of(language)[1]
    around: list[tuple[int, str, str]] = []  # what is open: its depth, what it is, name of a class
    found, num_broken = list[tuple[int, bool, Function]](), 0  # end, whether an error is inside
    for node, depth in _walked(tree):
        while around and around[-1][0] >= depth:
            around.pop()
        what = "error" if node.is_error else kinds.get(node.kind_id)
        if what is None or (what != "error" and not node.is_named):
            continue
        name, scopes = ("", list[str]()) if what == "error" else _name(node, source)
        if what in ("function", "unnamed") and node.child_by_field_name("body") is None:
            continue
        if what == "unnamed":
            name = _assigned_name(node, source)
            is_inside = any(outer == "function" for _, outer, _ in around)
            if not name and (is_inside or _is_called(node)):
                continue
            what = "function"
        if what == "function":
            if any(outer == "error" for _, outer, _ in around) or not _is_closed(node, source):
                num_broken += 1
            else:
                classes = [name for _, _, name in around if name]
                one = _function(node, name, [*classes, *scopes], source, language)
                found.append((node.end_byte, node.has_error, one))
        around.append((depth, what, name if what == "class" else ""))
    # What has an error and other functions in it is what an error made of several.
    pairs = zip(found, [*found[1:], None], strict=False)
    kept = [
        one
        for (end, has_error, one), after in pairs
        if not has_error or after is None or end < after[0]
    ]
    return kept, num_broken + len(found) - len(kept)


def _is_closed(node: "Node", source: bytes) -> bool:
    """Whether it is known where a function ends: without an error, or at a brace of its own.

    Code for a preprocessor is full of errors inside of functions. A brace that is missing makes a
    function swallow those after it.
    """
    if not node.has_error:
        return True
    body = node.child_by_field_name("body")
    last = None if body is None else body.child(body.child_count - 1)
    if body is None or last is None or last.type != "}" or last.is_missing:
        return False
    head = source[node.start_byte : body.start_byte]
    is_function = b"(" in head and not head.startswith(_NO_FUNCTIONS)
    return is_function and last.end_point == (node.end_point[0], node.start_point[1] + 1)


def _walked(tree: "Tree") -> "Iterator[tuple[Node, int]]":
    """Every node with its depth, in the order of the text."""
    cursor, depth = tree.walk(), 0
    while (node := cursor.node) is not None:
        yield node, depth
        if cursor.goto_first_child():
            depth += 1
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return
            depth -= 1


def _function(
    node: "Node", name: str, container: Sequence[str], source: bytes, language: Language
) -> Function:
    code = source[node.start_byte : node.end_byte].decode("utf-8")
    return Function(
        name=name,
        container=".".join(container),
        language=language.shown,
        first_line=node.start_point[0] + 1,
        last_line=node.end_point[0] + 1,
        code=code,
    )


def _text(node: "Node | None", source: bytes) -> str:
    if node is None:
        return ""
    return _SPACE.sub(" ", source[node.start_byte : node.end_byte].decode("utf-8")).strip()


def _name(node: "Node", source: bytes) -> tuple[str, list[str]]:
    """Name of a function or class, and the classes that the name itself gives (C++, Go)."""
    if (declarator := node.child_by_field_name("declarator")) is not None:
        return _declared(declarator, source)
    receiver = _RECEIVER.search(_text(node.child_by_field_name("receiver"), source))
    named = next(filter(None, map(node.child_by_field_name, _NAMED)), None)
    return _text(named, source), [receiver[1]] if receiver else []


def _declared(node: "Node | None", source: bytes) -> tuple[str, list[str]]:
    """The name within a declarator of C: `*(*A::f(int))(char)` declares f of A."""
    scopes: list[str] = []
    while node is not None:
        if node.type == "qualified_identifier":
            scopes.append(_text(node.child_by_field_name("scope"), source))
            node = node.child_by_field_name("name")
            continue
        if node.type == "operator_cast":
            return f"operator {_text(node.child_by_field_name('type'), source)}", scopes
        inner = node.child_by_field_name("declarator")
        if inner is None and node.type.endswith("declarator"):
            inner = next(iter(node.named_children), None)
        if inner is None:
            return _text(node, source), [scope for scope in scopes if scope]
        node = inner
    return "", []


def _outside(node: "Node") -> "Iterator[Node]":
    """The nodes around a value, without parentheses and lists."""
    parent = node.parent
    while parent is not None and parent.type in _AROUND_VALUE:
        parent = parent.parent
    if parent is not None:
        yield parent


def _assigned_name(node: "Node", source: bytes) -> str:
    """The last word of what a function is assigned to."""
    for parent in _outside(node):
        for field in _NAMES:
            named = parent.child_by_field_name(field)
            if named is not None and named.end_byte <= node.start_byte:
                return _text(named, source).strip("'\"$#")[-200:]
    return ""


def _is_called(node: "Node") -> bool:
    """Whether a function is called where it stands, as what wraps a whole file is."""
    for parent in _outside(node):
        called = parent.child_by_field_name("function") or parent.child_by_field_name("object")
        return called is not None and called.start_byte <= node.start_byte < called.end_byte
    return False
