"""A pattern is one flaw and its repair; rendering turns it into a pair of whole functions."""

import random
from dataclasses import dataclass, field
from string import Template

from data.samples.surroundings import NOUNS, VERBS, Surroundings

KINDS: dict[str, str] = {
    "lexical": "another call or argument is used",
    "order": "the same calls, in another order",
    "relation": "the same words, with the check or the cleaned value on another variable",
}


@dataclass(frozen=True)
class Pattern:
    """One flaw and its repair, as steps of code with `$name` placeholders.

    Attributes:
        cwe: Weakness id, such as "CWE-89".
        kind: A key of KINDS.
        signature: The first line of the function.
        steps: Step name to its alternative texts; a pair draws one alternative a step.
        vulnerable: Orders of step names, space separated, that hold the flaw; one is drawn.
        fixed: The orders without it, parallel to `vulnerable`: same index, same length.
        names: Placeholder to its alternatives, which may use placeholders above them.
        decoys: Statements unrelated to the flaw that use the words of the flaw or its repair.
    """

    cwe: str
    kind: str
    signature: str
    steps: dict[str, tuple[str, ...]]
    vulnerable: tuple[str, ...]
    fixed: tuple[str, ...]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    decoys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Both versions of one function; they differ only where the pattern does."""

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


def draw_steps(pattern: Pattern, names: dict[str, str], rng: random.Random) -> dict[str, list[str]]:
    """Draw one alternative of every step, as lines."""
    return {
        step: Template(rng.choice(texts)).substitute(names).split("\n")
        for step, texts in pattern.steps.items()
    }


def fill_gaps(
    pattern: Pattern,
    num_gaps: int,
    num_statements: int,
    names: dict[str, str],
    surroundings: Surroundings,
    rng: random.Random,
) -> list[list[str]]:
    """Spread unrelated statements over the gaps before, between and after the steps."""
    gaps: list[list[str]] = [[] for _ in range(num_gaps)]
    if pattern.kind == "order":
        # Next to each other, the steps of an order flaw would show in any two-word window.
        for gap in gaps[:-1]:
            gap.append(surroundings.line(rng))
        num_statements -= num_gaps - 2
    for _ in range(num_statements):
        # The last gap would follow the final return, so it stays empty.
        gaps[rng.randrange(num_gaps - 1)] += surroundings.statement(rng)
    if pattern.decoys and rng.random() < DECOY_CHANCE[pattern.kind]:
        decoy = Template(rng.choice(pattern.decoys)).substitute(names)
        gaps[rng.randrange(num_gaps - 1)] += decoy.split("\n")
    return gaps


def interleave(order: str, steps: dict[str, list[str]], gaps: list[list[str]]) -> list[str]:
    """Lines of a body: gap, step, gap, step, ..., gap."""
    lines = list(gaps[0])
    for step, gap in zip(order.split(), gaps[1:], strict=True):
        lines += steps[step] + gap
    return lines


def render_pair(pattern: Pattern, language: str, num_statements: int, rng: random.Random) -> Pair:
    """Render both versions with the same names and the same surrounding statements.

    Args:
        pattern: The flaw.
        language: "c", "java" or "python".
        num_statements: Unrelated statements around the steps; sets the length.
        rng: The only source of randomness.
    """
    names = draw_names(pattern, language, rng)
    steps = draw_steps(pattern, names, rng)
    chosen = rng.randrange(len(pattern.fixed))
    vulnerable, fixed = pattern.vulnerable[chosen], pattern.fixed[chosen]
    assert len(vulnerable.split()) == len(fixed.split()), (pattern.cwe, vulnerable, fixed)
    surroundings = Surroundings(language, reserved=set(names.values()), noun=names["noun"])
    num_gaps = len(fixed.split()) + 1
    gaps = fill_gaps(pattern, num_gaps, num_statements, names, surroundings, rng)
    signature = Template(pattern.signature).substitute(names)
    indent = rng.choice(INDENTS[language])
    bodies = [interleave(order, steps, gaps) for order in (vulnerable, fixed)]
    return Pair(names["func"], *(wrap(language, signature, body, indent) for body in bodies))


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
