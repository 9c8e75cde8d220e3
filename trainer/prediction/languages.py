"""What a function is in each language: kinds of nodes of its tree-sitter grammar."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Parser


@dataclass(frozen=True)
class Language:
    """One row of the table; kinds of nodes are words in one text.

    Attributes:
        shown: Its name for people and in files.
        grammar: Package, and its function where it has several.
        endings: Of the names of its files.
        functions: Nodes that are a function if they have a body.
        classes: Nodes around methods, named by their field `name` or `type`.
        unnamed: Functions that are values: named by what they are assigned to.
    """

    shown: str
    grammar: str
    endings: str
    functions: str
    classes: str = ""
    unnamed: str = ""


_SCRIPT = "function_declaration generator_function_declaration method_definition"
_VALUES = "function_expression generator_function arrow_function"
_TYPED = "class_declaration abstract_class_declaration class interface_declaration"
_TS = "typescript.language"
LANGUAGES = (
    Language(
        "Java", "java", "java",
        "method_declaration constructor_declaration compact_constructor_declaration",
        "class_declaration interface_declaration enum_declaration record_declaration",
    ),
    Language("C", "c", "c h", "function_definition"),
    Language(
        "C++", "cpp", "cc cpp cxx c++ hh hpp hxx h++ ipp inl cu cuh h", "function_definition",
        "class_specifier struct_specifier union_specifier",
    ),
    Language("Python", "python", "py pyw", "function_definition", "class_definition"),
    Language(
        "JavaScript", "javascript", "js jsx mjs cjs", _SCRIPT, "class_declaration class", _VALUES
    ),
    Language("TypeScript", f"{_TS}_typescript", "ts mts cts", _SCRIPT, _TYPED, _VALUES),
    Language("TypeScript", f"{_TS}_tsx", "tsx", _SCRIPT, _TYPED, _VALUES),
    Language("Go", "go", "go", "function_declaration method_declaration", "", "func_literal"),
    Language(
        "PHP", "php.language_php", "php phtml", "function_definition method_declaration",
        "class_declaration interface_declaration trait_declaration enum_declaration",
        "anonymous_function arrow_function",
    ),
    Language(
        "C#", "c_sharp", "cs",
        "method_declaration constructor_declaration destructor_declaration operator_declaration"
        " conversion_operator_declaration local_function_statement",
        "class_declaration struct_declaration interface_declaration record_declaration",
    ),
    Language("Rust", "rust", "rs", "function_item", "impl_item trait_item"),
    Language("Ruby", "ruby", "rb rake", "method singleton_method", "class module"),
)  # fmt: skip


def languages_of(name: str) -> tuple[Language, ...]:
    """The languages that a file can be in, by its ending: two for a header of C or C++."""
    return _by_ending().get(PurePath(name).suffix[1:].lower(), ())


def meant(word: str) -> set[str]:
    """The languages that a dataset's word for one can mean: C and C++ by "c/c++"."""
    words = set(word.casefold().split("/"))
    return {
        one.shown
        for one in LANGUAGES
        if words & {one.shown.casefold(), one.grammar.partition(".")[0], *one.endings.split()}
    }


@cache
def _by_ending() -> dict[str, tuple[Language, ...]]:
    found: dict[str, tuple[Language, ...]] = {}
    for language in LANGUAGES:
        for ending in language.endings.split():
            found[ending] = (*found.get(ending, ()), language)
    return found


@cache
def parser_of(language: Language) -> "tuple[Parser, Mapping[int, str]]":
    """Parser, and what the kinds of nodes that matter are: by id "function", "unnamed", "class".

    They are looked up by a walk. A query of tree-sitter needs a time that grows with the square of
    the children of a node, and a file can have a million commas in one.
    """
    from tree_sitter import Language as Grammar
    from tree_sitter import Parser

    package, _, function = language.grammar.partition(".")
    module = import_module(f"tree_sitter_{package}")
    grammar = Grammar(getattr(module, function or "language")())
    named = {"class": language.classes, "unnamed": language.unnamed, "function": language.functions}
    ids = {
        grammar.id_for_node_kind(kind, True): what
        for what, kinds in named.items()
        for kind in kinds.split()
    }
    assert None not in ids, f"{language.grammar} lacks a kind of {named}"
    return Parser(grammar), {number: what for number, what in ids.items() if number is not None}
