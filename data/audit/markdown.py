"""The audit as Markdown: verdicts first, then the tables they rest on; no computation."""

from collections.abc import Iterable, Iterator, Sequence

from data.audit.facts import AuditFacts, NearPairs, Shared, SplitPopulation

_CWES = 40  # rows of the table; audit.json has all
_EXAMPLES = 3  # of each split or pair of splits
_LENGTHS = ("min", "median", "mean", "p90", "p99", "max")


def render(facts: AuditFacts, figure: str | None) -> str:
    """One page.

    Args:
        facts: Of audit_splits.
        figure: Name of the picture of lengths beside the page.
    """
    parts = [
        "# Audit of the dataset",
        headline(facts),
        *_verdicts(facts),
        "## Splits",
        _splits(facts.splits),
        "## Exact duplicates and contradictory labels",
        "Whitespace aside. Across two splits: codes that stand in both.",
        _shared_tables(facts),
        "## Near duplicates",
        *_near(facts),
        "## Groups on both sides",
        _groups(facts.groups),
        "## Words that go with the label",
        *_words(facts),
        "## Lengths in tokens",
        *_lengths(facts.splits, figure),
        "## Weaknesses",
        *_cwes(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(facts: AuditFacts) -> str:
    """ "2 leaks, 1 warning, 3 notes"."""
    counts = {
        kind: sum(f.severity == kind for f in facts.findings)
        for kind in ("leak", "warning", "note")
    }
    if not any(counts.values()):
        return "Nothing was found."
    return ", ".join(f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in counts.items())


def table(header: Sequence[str], rows: Iterable[Sequence[str]], others_align: str = "---:") -> str:
    """Format a Markdown table; the first column is aligned left."""
    rule = ["---", *[others_align] * (len(header) - 1)]
    lines = [header, rule, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verdicts(facts: AuditFacts) -> Iterator[str]:
    rows = [[f.severity, f.found, f.meaning, f.remedy] for f in facts.findings]
    if rows:
        yield table(["severity", "found", "meaning", "what to do"], rows, "---")


def _splits(splits: Sequence[SplitPopulation]) -> str:
    header = [
        "split",
        "functions",
        "distinct",
        "vulnerable",
        "share",
        "with their fix",
        "commits",
        "projects",
        "CVEs",
    ]
    rows = [
        [
            split.name,
            f"{split.num_functions:,}",
            f"{split.num_distinct:,}",
            f"{split.num_positive:,}",
            f"{split.num_positive / max(split.num_functions, 1):.1%}",
            f"{split.num_fix_pairs:,}",
            *(f"{num:,}" if num else "unknown" for num in split.groups.values()),
        ]
        for split in splits
    ]
    return table(header, rows)


def _shared_tables(facts: AuditFacts) -> str:
    both = {shared.where: shared for shared in facts.contradictions}
    rows = [
        [
            shared.where,
            f"{shared.num_things:,}",
            _sides(shared.num_functions),
            f"{both[shared.where].num_things:,}",
        ]
        for shared in facts.exact
    ]
    header = ["where", "codes", "functions", "codes with both labels"]
    examples = [
        *_examples("Duplicates", facts.exact), *_examples("Both labels", facts.contradictions)
    ]  # fmt: skip
    return "\n\n".join([table(header, rows), *examples])


def _near(facts: AuditFacts) -> Iterator[str]:
    near = facts.near
    looked_at = ", ".join(
        f"{name} all {num:,}" if part == num else f"{name} a seeded sample of {part:,} of {num:,}"
        for name, (part, num) in near.examined.items()
    )
    yield (
        f"{near.method}. Looked at: {looked_at} ({near.functions_per_second:,.0f} functions/s)."
        " Exact duplicates are not counted again here. Pairs of a fix, which share a commit and"
        " differ in the label inside one split, are alike by nature and counted apart."
    )
    rows = [
        [
            pairs.where,
            f"{pairs.num_pairs:,}",
            f"{pairs.num_opposite:,}",
            _sides(pairs.num_functions),
            f"{near.num_fix_pairs[pairs.where]:,}" if pairs.where in near.num_fix_pairs else "-",
        ]
        for pairs in near.pairs
    ]
    yield table(["where", "pairs", "opposite labels", "functions", "pairs of a fix left out"], rows)
    clusters = near.clusters
    if clusters["num_clusters"]:
        yield (
            f"Exact and near duplicates form {clusters['num_clusters']:,} clusters of"
            f" {clusters['num_functions']:,} functions; the largest has {clusters['largest']:,},"
            f" and {clusters['num_across_splits']:,} reach over splits."
        )
    yield from _examples("Most alike", near.pairs)


def _groups(groups: dict[str, list[Shared]]) -> str:
    if not groups:
        return "No function names its commit, project or CVE."
    rows = [
        [field, shared.where, f"{shared.num_things:,}", _sides(shared.num_functions)]
        for field, pairs in groups.items()
        for shared in pairs
    ]
    examples = [part for field, pairs in groups.items() for part in _examples(field, pairs)]
    return "\n\n".join([table(["field", "splits", "groups", "functions"], rows), *examples])


def _words(facts: AuditFacts) -> Iterator[str]:
    words = facts.words
    yield (
        f"{words.num_tested:,} words in {words.num_examined:,} distinct functions of"
        f" {facts.splits[0].name} were tested; {words.num_telling:,} go with the label beyond"
        " chance (Fisher's exact test, 1% after Bonferroni). The label has"
        f" {words.label_bits:.3f} bits. Accuracy is the balanced accuracy of the word alone."
    )
    if not words.words:
        return
    rows = [
        [
            f"`{', '.join(word.words)}`",
            word.place,
            f"{word.num_positive:,}",
            f"{word.num_negative:,}",
            f"{word.bits:.4f}",
            f"{word.balanced_accuracy:.3f}",
            f"{word.p_value:.1e}",
            "yes" if word.is_known else "",
            "**yes**" if word.carries_label else "",
        ]
        for word in words.words
    ]
    header = ["word", "in", "vulnerable", "safe", "bits", "accuracy", "p", "known", "carries"]
    yield table(header, rows)


def _lengths(splits: Sequence[SplitPopulation], figure: str | None) -> Iterator[str]:
    rows = [
        [
            split.name,
            *(f"{split.lengths[name]:,.0f}" for name in _LENGTHS),
            "-" if split.length_auc is None else f"{split.length_auc:.3f}",
        ]
        for split in splits
        if split.lengths
    ]
    if not rows:
        yield "Not tokenised."
        return
    yield table(["split", *_LENGTHS, "ROC AUC of length"], rows)
    if figure:
        yield f"![Lengths by split and class]({figure})"


def _cwes(facts: AuditFacts) -> Iterator[str]:
    if set(facts.cwes) <= {""}:
        yield "No function names its CWE."
        return
    names = [split.name for split in facts.splits]
    rows = [
        [cwe or "(none)", *(f"{num:,} ({pos:,})" for num, pos in counts.values())]
        for cwe, counts in list(facts.cwes.items())[:_CWES]
    ]
    yield "Functions, and the vulnerable of them in brackets."
    yield table(["CWE", *names], rows)
    if len(facts.cwes) > _CWES:
        yield f"{len(facts.cwes) - _CWES} more are in audit.json."


def _examples(title: str, found: Sequence[Shared] | Sequence[NearPairs]) -> Iterator[str]:
    lines = [
        f"- {shared.where}: `{_cell(example)}`"
        for shared in found
        for example in shared.examples[:_EXAMPLES]
    ]
    if lines:
        yield f"{title}, for example:"
        yield "\n".join(lines)


def _sides(num_functions: dict[str, int]) -> str:
    return " + ".join(f"{num:,}" for num in num_functions.values())


def _cell(text: str) -> str:
    # A pipe or a line break would end the cell; a commit message or a file name may hold either.
    return " ".join(text.replace("|", "\\|").split())
