"""Audit the splits of a dataset and write what was found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.audit.columns import read_columns
from data.audit.facts import AuditFacts, IntArray
from data.audit.figure import lengths_svg
from data.audit.findings import verdicts
from data.audit.markdown import headline, render
from data.audit.near import near_duplicates
from data.audit.population import cwe_table, length_edges, population
from data.audit.shared import contradictions, duplicate_ids, exact_duplicates, shared_groups
from data.audit.words import telling_words
from data.records import CodeSample
from data.text.labels import Classes
from data.text.whitespace import collapse_damage

FIGURE = "lengths.svg"


def audit_splits(
    splits: Mapping[str, Sequence[CodeSample]],
    lengths: Mapping[str, IntArray],
    classes: Classes | None = None,
    *,
    leak_groups: Sequence[str] = ("commit", "cve"),
    normalize_whitespace: str = "none",
    seq_length: int | None = None,
    max_functions: int = 50_000,
) -> AuditFacts:
    """Look for everything that makes a test result untrue.

    Args:
        splits: Records by name, the training split first; none is empty.
        lengths: Tokens of every function, by split; {} before tokenisation.
        classes: What the targets mean; by default the usual two.
        leak_groups: Fields of "commit", "project", "cve" whose values must not be in two splits.
        normalize_whitespace: "collapse" counts the functions it harms.
        seq_length: Marked in the picture of lengths.
        max_functions: Near duplicates and words use a seeded sample of this size from a larger
            split; exact duplicates, groups and classes always cover all.
    """
    for name, lengths_N in lengths.items():
        assert len(lengths_N) == len(splits[name]), f"{name}: a length for every function"
    classes = classes or Classes()
    columns = [read_columns(name, samples, classes) for name, samples in splits.items()]
    edges = length_edges(lengths)
    collapse = None
    if normalize_whitespace == "collapse":
        collapse = collapse_damage(columns[0].samples, max_functions)
    facts = AuditFacts(
        findings=[],
        classes=list(classes.shown),
        informative=[classes.shown[number] for number in classes.informative],
        splits=[population(split, lengths.get(split.name), edges) for split in columns],
        exact=exact_duplicates(columns),
        near=near_duplicates(columns, max_functions),
        contradictions=contradictions(columns),
        ids=duplicate_ids(columns),
        groups=shared_groups(columns),
        words=telling_words(columns[0], max_functions),
        cwes=cwe_table(columns),
        length_edges=edges,
        seq_length=seq_length,
        collapse=collapse,
    )
    return replace(facts, findings=verdicts(facts, leak_groups))


def write_audit(folder: Path, facts: AuditFacts) -> list[Path]:
    """Write audit.json, audit.md and, where lengths are known, lengths.svg; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts.to_json(), indent=2, ensure_ascii=False) + "\n"
    figure = FIGURE if facts.length_edges else None
    contents = {"audit.json": text.encode(), "audit.md": render(facts, figure).encode()}
    if figure is not None:
        contents[figure] = lengths_svg(facts)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def summary_lines(facts: AuditFacts) -> list[str]:
    """The short form: a headline, then each leak and warning with its remedy."""
    severe = [finding for finding in facts.findings if finding.severity != "note"]
    lines = [f"  {f.severity}: {f.found}; {f.remedy}" for f in severe]
    return [f"audit: {headline(facts)}", *lines]
