"""A pattern is one flaw and its repair; rendering makes a pair of whole functions from it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import Template

from data.samples.surroundings import NOUNS, VERBS, Surroundings


@dataclass(frozen=True)
class Pattern:
    """One flaw and its repair, as steps of code with `$name` placeholders.

    Attributes:
        cwe: Weakness id, such as "CWE-89".
        signature: The first line of the function.
        steps: Step name to its alternative texts; a pair draws one alternative for each step.
        orders: Step names with the flaw, and as many without it; one of these pairs is drawn.
        names: Placeholder to its alternatives, which may use placeholders above them.
        decoys: Statements unrelated to the flaw that use the words of the flaw or its repair.
    """

    cwe: str
    signature: str
    steps: dict[str, tuple[str, ...]]
    orders: tuple[tuple[str, str], ...]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    decoys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Both versions of one function, which differ only where the pattern does."""

    function_name: str
    vulnerable: str
    fixed: str


DECOY_CHANCE: dict[str, float] = {"lexical": 0.6, "order": 0.15, "relation": 0.15}
COMMON_NAMES: dict[str, tuple[str, ...]] = {
    "cap": ("32", "64", "128", "256", "512"),
    "err": ("-1", "-EINVAL", "-ERANGE", "-EPERM"),
    "num": ("1", "2", "4", "8", "10", "16", "60", "100"),
}


def camel(*words: str) -> str:
    """Join words as camelCase."""
    return words[0] + "".join(word.capitalize() for word in words[1:])


def draw_names(pattern: Pattern, language: str, rng: random.Random) -> dict[str, str]:
    """Draw one value for every placeholder of the pattern."""
    noun, other = rng.sample(NOUNS, 2)
    verb = rng.choice(VERBS)
    words = (verb, noun) if rng.random() < 0.6 else (verb, noun, rng.choice(NOUNS))
    names = {
        "noun": noun,
        "Noun": noun.capitalize(),
        "other": other,
        "Other": other.capitalize(),
        "func": camel(*words) if language == "java" else "_".join(words),
    }
    for name, choices in (COMMON_NAMES | pattern.names).items():
        texts = [Template(choice).substitute(names) for choice in choices]
        # Two placeholders may share their alternatives, but never a value.
        names[name] = rng.choice([text for text in texts if text not in names.values()] or texts)
    return names


def render_pair(
    pattern: Pattern, kind: str, language: str, num_statements: int, rng: random.Random
) -> Pair:
    """Render both versions with the same names and the same surrounding statements.

    Args:
        pattern: The flaw.
        kind: "lexical", "order" or "relation".
        language: "c", "java" or "python".
        num_statements: Unrelated statements around the steps; sets the length.
        rng: The only source of randomness.
    """
    names = draw_names(pattern, language, rng)
    steps = {
        step: Template(rng.choice(texts)).substitute(names).split("\n")
        for step, texts in pattern.steps.items()
    }
    orders = [order.split() for order in rng.choice(pattern.orders)]
    assert len(orders[0]) == len(orders[1]), (pattern.cwe, orders)
    surroundings = Surroundings(language, reserved=set(names.values()), noun=names["noun"])
    gaps: list[list[str]] = [[] for _ in range(len(orders[0]) + 1)]
    places = gaps[:-1]  # the last one would follow the final return, so it stays empty
    if kind == "order":
        # Next to each other, the steps of an order flaw would show in any two-word window.
        for gap in places:
            gap.append(surroundings.line(rng))
        num_statements -= len(places) - 1
    for _ in range(num_statements):
        rng.choice(places).extend(surroundings.statement(rng))
    if pattern.decoys and rng.random() < DECOY_CHANCE[kind]:
        decoy = Template(rng.choice(pattern.decoys)).substitute(names)
        rng.choice(places).extend(decoy.split("\n"))
    signature = Template(pattern.signature).substitute(names)
    indent = rng.choice(INDENTS[language])
    bodies = [interleave([steps[step] for step in order], gaps) for order in orders]
    return Pair(names["func"], *(wrap(language, signature, body, indent) for body in bodies))


def interleave(steps: Sequence[list[str]], gaps: Sequence[list[str]]) -> list[str]:
    """Lines of a body: gap, step, gap, step, ..., gap."""
    lines = list(gaps[0])
    for step, gap in zip(steps, gaps[1:], strict=True):
        lines += step + gap
    return lines


INDENTS: dict[str, tuple[str, ...]] = {
    "c": ("    ", "    ", "\t"),
    "java": ("    ", "    ", "  "),
    "python": ("    ",),
}


def wrap(language: str, signature: str, body: list[str], indent: str) -> str:
    """Close a body into a function; templates are written with four spaces a level."""
    opening = {"c": "\n{", "java": " {", "python": ":"}[language]
    lines = [signature + opening]
    for line in body:
        text = line.lstrip(" ")
        level = 1 + (len(line) - len(text)) // 4
        lines.append(indent * level + text)
    if language != "python":
        lines.append("}")
    return "\n".join(lines) + "\n"
