"""Which language a function is written in, and what its grammar captures: see grammars/c.scm."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.records import CodeSample

if TYPE_CHECKING:
    from tree_sitter import Node, Parser, Query

Edit = tuple[int, int, bytes]  # start, end, what takes the place of the bytes between
_METHOD = ("class X {\n", "\n}")  # around a method whose class is not there
_WRAPPERS: dict[str, tuple[tuple[str, str], ...]] = {
    "python": (("", ""),),
    "javascript": (("", ""), _METHOD),
    "java": (("", ""), _METHOD),
    "c": (("", ""),),
    "cpp": (("", ""), ("class X {\n", "\n};")),
}
# In the order that decides between grammars which take as many functions: the strictest first.
LANGUAGES = tuple(_WRAPPERS)
# By the dataset's word for a language and by the ending of a file; C++ is often called C.
_CALLED = {
    **dict.fromkeys(("c", "h", "c/c++"), ("c", "cpp")),
    **dict.fromkeys(("c++", "cpp", "cc", "cxx", "hpp", "hh", "hxx"), ("cpp",)),
    "java": ("java",),
    **dict.fromkeys(("javascript", "js", "jsx", "mjs", "cjs"), ("javascript",)),
    **dict.fromkeys(("python", "python2", "python3", "py"), ("python",)),
}
_ENDING = re.compile(r"\.(\w+)(?=:|$)")
# A tree is written as text with a frame of the stack for each level, and searched in a time that
# grows with the square of the levels.
_MOST_BYTES, _MOST_NODES, _MOST_LEVELS = 50_000, 20_000, 500
# Of a text for a step of its parser: code has 47 or more, and a text that could have a thousand
# meanings takes gigabytes.
_LEAST_BYTES = 30


@dataclass(frozen=True)
class Parsed:
    """A function without syntax errors.

    Attributes:
        source: Its UTF-8, in a class where the grammar wants one around a method.
        inside: Where the function itself begins and ends.
        shape: The tree as text, without positions and words.
    """

    language: str
    source: bytes
    inside: tuple[int, int]
    captures: dict[str, list["Node"]]
    shape: str

    def nodes(self, name: str) -> list["Node"]:
        """The nodes of a capture, in the order of the text."""
        return sorted(self.captures.get(name, ()), key=lambda node: node.start_byte)

    def edited(self, edits: Iterable[Edit]) -> str:
        """The function after edits that do not overlap; those outside of it are left out."""
        first, last = self.inside
        parts, end = [], first
        for start, stop, content in sorted(edits):
            if first <= start and stop <= last:
                parts += [self.source[end:start], content]
                end = stop
        return b"".join([*parts, self.source[end:last]]).decode("utf-8")


def candidates(sample: CodeSample) -> tuple[str, ...]:
    """The languages that a function can be in: by its language, its file's name, or all of them."""
    if sample.language:
        return _CALLED.get(sample.language.strip().lower(), ())
    endings = _ENDING.findall(sample.origin.lower())
    return next((_CALLED[ending] for ending in endings if ending in _CALLED), LANGUAGES)


def languages_of(samples: Iterable[CodeSample]) -> list[str]:
    """The language of each function; "" where no grammar takes it whole.

    Where several do, it is the one that takes the most of these functions.
    """
    taken = [
        [name for name in candidates(s) if all(parsed(c, name) for c in (s.code, s.code2) if c)]
        for s in samples
    ]
    num = Counter(chain.from_iterable(taken))
    return [max(names, key=num.__getitem__, default="") for names in taken]


def parsed(code: str, language: str) -> Parsed | None:
    """A function in a language; None where the grammar does not take all of it, or no body."""
    found = (_parsed(code, language, *around) for around in _WRAPPERS[language])
    return next((one for one in found if one is not None), None)


def _parsed(code: str, language: str, before: str, after: str) -> Parsed | None:
    from tree_sitter import QueryCursor

    try:
        source = f"{before}{code}{after}".encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    if len(source) > _MOST_BYTES:
        return None
    parser, query = _grammar(language)
    steps = count()

    def is_hopeless(offset: int, has_error: bool) -> bool:
        return has_error or next(steps) > (offset + 400) / _LEAST_BYTES

    try:
        parser.parse(lambda place, _: source[place:], progress_callback=is_hopeless)
    except ValueError:  # given up
        parser.reset()
        return None
    tree = parser.parse(source)  # again, because nodes have a text of their own this way only
    root = tree.root_node
    if root.has_error or root.descendant_count > _MOST_NODES:
        return None
    shape = str(root)
    letters = np.frombuffer(shape.encode(), np.uint8)
    if ((letters == ord("(")).cumsum() - (letters == ord(")")).cumsum()).max() > _MOST_LEVELS:
        return None
    captures = QueryCursor(query).captures(root)
    inside = len(before.encode()), len(source) - len(after.encode())
    return Parsed(language, source, inside, captures, shape) if "body" in captures else None


def holds(outer: "Node", inner: "Node") -> bool:
    """Whether a node is within another, or the same stretch of text."""
    return outer.start_byte <= inner.start_byte and inner.end_byte <= outer.end_byte


@cache
def _grammar(name: str) -> tuple["Parser", "Query"]:
    from tree_sitter import Language, Parser, Query

    language = Language(import_module(f"tree_sitter_{name}").language())
    folder = Path(__file__).with_name("grammars")
    files = ("c", "cpp") if name == "cpp" else (name,)
    text = "\n".join((folder / f"{file}.scm").read_text(encoding="utf-8") for file in files)
    return Parser(language), Query(language, text)
