"""The verdicts: what was found, what it means, what to do; the most severe first."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from data.audit.facts import (
    SEVERITIES,
    AuditFacts,
    Finding,
    NearFacts,
    Shared,
    SplitPopulation,
    TellingWord,
    WordFacts,
)
from data.text.whitespace import CollapseFacts

_LENGTH_AUC = 0.6  # length alone ranks this well: a model may learn nothing else
_PRIOR_SHIFT = 0.1
_COMMON = 0.95
_DEVIATIONS = 3  # that an AUC is off 1/2 by in a class of few functions, before it counts
_NAMED = 6  # words quoted in a verdict


def verdicts(facts: AuditFacts, leak_groups: Sequence[str]) -> list[Finding]:
    """All findings, leaks before warnings before notes.

    Args:
        leak_groups: Fields that two splits must not share.
    """
    found = [
        *_exact(shared for shared in facts.exact if shared.num_things),
        *_groups(facts.groups, leak_groups, facts.splits),
        *_near(facts.near),
        *_contradictory(shared for shared in facts.contradictions if shared.num_things),
        *_repeated_ids(shared for shared in facts.ids if shared.num_things),
        *_words(facts.words, facts.classes[0] if len(facts.informative) == 1 else "others"),
        *_classes(facts.splits),
        *_shifts(facts.splits, facts.informative),
        *_lengths(facts.splits),
        *_collapse(facts.collapse),
        *_samples(facts.near),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _exact(exact: Iterable[Shared]) -> Iterator[Finding]:
    for shared in exact:
        first, *second = shared.where.split("/")
        if second:
            num = shared.num_functions[second[0]]
            yield Finding(
                "leak",
                f"{_functions(num)} of {second[0]} {'is' if num == 1 else 'are'} in {first} too,"
                f" whitespace aside ({shared.examples[0]})",
                "scores reward memory",
                "remove them from one of the two, or set data.allow_leaks=true",
            )
        else:
            extra = shared.num_functions[first] - shared.num_things
            yield Finding(
                "note",
                f"{first}: {_functions(extra)} repeat another of the split, whitespace aside",
                "repeated functions weigh more, and intervals get too narrow",
                "keep one of each",
            )


def _groups(
    groups: dict[str, list[Shared]], leak_groups: Sequence[str], splits: Sequence[SplitPopulation]
) -> Iterator[Finding]:
    for field, pairs in groups.items():
        for shared in pairs:
            if not shared.num_things:
                continue
            one, other = shared.where.split("/")
            sides = shared.num_functions
            yield Finding(
                "leak" if field in leak_groups else "note",
                f"{one} and {other} share {_count(shared.num_things, field)}:"
                f" {_functions(sides[one])} of {one}, {sides[other]:,} of {other}"
                f" ({shared.examples[0]})",
                f"functions of one {field} resemble each other: scores hold for known {field}s"
                " only",
                f"split by {field}, or take {field} out of data.leak_groups"
                if field in leak_groups
                else f"split by {field} to measure unseen {field}s",
            )
    if not any(groups.values()) and len(splits) > 1:
        yield Finding(
            "note",
            "no function names its commit, project or CVE",
            "groups in several splits, and functions with their fix, cannot be seen",
            "map the fields with data.fields where the dataset has them",
        )


def _near(near: NearFacts) -> Iterator[Finding]:
    for pairs in near.pairs:
        if not pairs.num_pairs:
            continue
        first, *second = pairs.where.split("/")
        opposite = f", {pairs.num_opposite:,} with different labels" if pairs.num_opposite else ""
        if second:
            num, (looked_at, _) = pairs.num_functions[second[0]], near.examined[second[0]]
            yield Finding(
                "warning",
                f"{_functions(num)} of {second[0]} ({num / looked_at:.1%})"
                f" {'has a near twin' if num == 1 else 'have near twins'} in {first}"
                f" ({_count(pairs.num_pairs, 'pair')}{opposite})",
                "copies of code seen in training are easier than new code, and harder where the"
                " label differs",
                "keep near twins in one split, or report without them; audit.json lists them",
            )
        else:
            yield Finding(
                "note",
                f"{first}: {_functions(pairs.num_functions[first])} have near twins in the split"
                f" ({_count(pairs.num_pairs, 'pair')}{opposite})",
                "the functions vary less than their number suggests",
                "keep one of each cluster, or give a cluster one commit so that it stays together",
            )


def _contradictory(contradictions: Iterable[Shared]) -> Iterator[Finding]:
    for shared in contradictions:
        yield Finding(
            "warning",
            f"{shared.where}: {_count(shared.num_things, 'code')} with different labels, whitespace"
            f" aside ({shared.examples[0]})",
            "no model can be right about all; the flaw lies outside the function, or a label"
            " is wrong",
            "correct or remove them",
        )


def _repeated_ids(ids: Iterable[Shared]) -> Iterator[Finding]:
    for shared in ids:
        yield Finding(
            "warning",
            f"{shared.where}: {_count(shared.num_things, 'id')} given to"
            f" {_functions(shared.num_functions[shared.where])} ({shared.examples[0]})",
            "a prediction cannot be traced back by its id",
            "number them anew, or leave the id out: the place in the file is then used",
        )


def _words(facts: WordFacts, rest: str) -> Iterator[Finding]:
    quoted = partial(_quoted, rest)
    carries = [w for w in facts.words if w.carries_label]
    artefacts = [
        w for w in carries if w.place in ("comment", "name") or (w.is_known and w.place != "file")
    ]
    if artefacts:
        yield Finding(
            "leak",
            f"carries the label: {quoted(artefacts)}",
            "the model can read the answer and learn nothing about flaws",
            "rename or remove these words in all splits",
        )
    hints = [w for w in facts.words if w not in artefacts and (w.is_known or w.place == "comment")]
    plain = [w for w in carries if w not in artefacts and w not in hints]
    if plain:
        yield Finding(
            "warning",
            f"carries the label alone: {quoted(plain)}",
            "either the task is this easy or the word is an artefact of how the data was made",
            "look at the functions that hold it; report a baseline without it",
        )
    if hints:
        yield Finding(
            "warning",
            f"comments or telling names go with the label: {quoted(hints)}",
            "a hint for people or a trace of the fix, not the flaw itself",
            "strip comments or rename, and see whether the score stays",
        )
    num_rest = facts.num_telling - len(artefacts) - len(hints) - len(plain)
    if num_rest > 0:
        others = [w for w in facts.words if w not in (*artefacts, *hints, *plain)]
        yield Finding(
            "note",
            f"{_count(num_rest, 'other word')} go with the label beyond chance: {quoted(others)}",
            "real signals (an unsafe call) or habits of the source; none tells the label alone",
            "read the table of words",
        )


def _classes(splits: Sequence[SplitPopulation]) -> Iterator[Finding]:
    for split in splits:
        absent = [name for name, count in split.counts.items() if not count]
        common = max(split.counts, key=lambda name: split.counts[name])
        if len(absent) >= len(split.counts) - 1 and split.share(common) in (0.0, 1.0):
            yield Finding(
                "warning",
                f"{split.name}: every function is {common if split.counts[common] else 'of none'}",
                "there is nothing to distinguish; ROC AUC is undefined",
                "add functions of other classes, or check data.labels",
            )
            continue
        if absent:
            yield Finding(
                "note",
                f"{split.name}: no function is {' or '.join(map(repr, absent[:_NAMED]))}"
                + _more(len(absent) - _NAMED, " or of {} other classes"),
                "a class that is not there is neither learned nor measured",
                "let data.split divide, which keeps shares, or raise data.min_class_size",
            )
        if split.share(common) > _COMMON:
            yield Finding(
                "note",
                f"{split.name}: {split.share(common):.1%} are {common}",
                f"accuracy says little; always answering {common} is nearly always right",
                "read PR AUC or macro F1; weigh the classes (loss.alpha) or set"
                " data.sampling=balanced",
            )


def _shifts(splits: Sequence[SplitPopulation], informative: Sequence[str]) -> Iterator[Finding]:
    first, *others = splits
    for split in others:
        shift = {name: abs(split.share(name) - first.share(name)) for name in informative}
        most = max(shift, key=lambda name: shift[name])
        more = sum(by > _PRIOR_SHIFT for by in shift.values()) - 1
        if shift[most] > _PRIOR_SHIFT:
            yield Finding(
                "note",
                f"{first.share(most):.1%} of {first.name} are {most},"
                f" {split.share(most):.1%} of {split.name}"
                + _more(more, "; {} other classes differ by a tenth, too"),
                "scores are calibrated to the first; a threshold of 0.5 misleads on the second",
                "choose the threshold on a split with the share you expect in use",
            )


def _lengths(splits: Sequence[SplitPopulation]) -> Iterator[Finding]:
    for split in splits:
        ranked = {}
        for name, auc in split.length_auc.items():
            num, rest = split.counts[name], split.num_functions - split.counts[name]
            deviation = math.sqrt((num + rest + 1) / (12 * num * rest))  # Mann and Whitney 1947
            if abs(auc - 0.5) >= max(_LENGTH_AUC - 0.5, _DEVIATIONS * deviation):
                ranked[name] = auc
        if ranked:
            name, auc = max(ranked.items(), key=lambda item: abs(item[1] - 0.5))
            kind = "longer" if auc > 0.5 else "shorter"
            yield Finding(
                "warning",
                f"{split.name}: {name} functions are {kind}: length alone ranks them with"
                f" ROC AUC {max(auc, 1 - auc):.2f}"
                + _more(len(ranked) - 1, ", and {} other classes beyond chance"),
                "a model may learn the length and look skilled",
                "compare the model with a baseline that sees only the length",
            )


def _collapse(collapse: CollapseFacts | None) -> Iterator[Finding]:
    if collapse is not None and collapse.num_harmed:
        yield Finding(
            "warning",
            f"train: {collapse.warning()}",
            "the model reads code whose rest is a comment, or that no longer parses",
            "use data.normalize_whitespace=lines, which keeps line ends",
        )


def _samples(near: NearFacts) -> Iterator[Finding]:
    for name, (looked_at, num) in near.examined.items():
        if looked_at < num:
            yield Finding(
                "note",
                f"{name}: near twins and words come from a seeded sample of {looked_at:,} of"
                f" {num:,} functions",
                "counts of near twins are lower bounds; exact duplicates and groups cover all",
                "raise the limit of the audit to look at more",
            )


def _quoted(rest: str, words: Sequence[TellingWord]) -> str:
    shown = [
        f"{word.words[0]!r} in {word.place} ({word.num_positive:,} {word.label},"
        f" {word.num_negative:,} {rest})"
        for word in words[:_NAMED]
    ]
    return ", ".join(shown) + _more(len(words) - _NAMED, " and {} more")


def _more(num: int, text: str) -> str:
    return text.format(num) if num > 0 else ""


def _functions(num: int) -> str:
    return _count(num, "function")


def _count(num: int, thing: str) -> str:
    return f"{num:,} {thing}" if num == 1 else f"{num:,} {thing}s"
