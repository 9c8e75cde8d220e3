"""Functions and groups that are in several splits, or have different labels in one.

Functions are compared by a digest of 8 bytes, so that millions fit in memory: among 5 million, the
chance that two different ones look the same is 1 in 1.5 million.
"""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.prepared.table import RecordTable
from data.records import CodeSample, RecordSource
from data.text.labels import Classes

GROUPS = ("commit", "project", "cve")
_SHOWN = 2  # examples of a kind and pair that are quoted
_MOST_CWES = 200  # named in data.json
_UNKNOWN = bytes(8)  # digest of a group without a value

Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SplitFacts:
    """What two splits share, by pair such as "train/test", and what repeats within one.

    Attributes:
        shared_functions: Functions in both, whitespace aside.
        shared_groups: By field: values in both.
        duplicates: By split: functions that repeat an earlier one.
        contradictory: By split: functions with different labels.
        examples: Such as "commits train/test: 1f3b at train.jsonl:3 = test.jsonl:9".
    """

    shared_functions: dict[str, int]
    shared_groups: dict[str, dict[str, int]]
    duplicates: dict[str, int]
    contradictory: dict[str, int]
    examples: list[str]

    def leak_lines(self, groups: Sequence[str], unit: str = "functions") -> list[str]:
        """What leaks, for people: kind, pair, number and examples by file and line."""
        lines = []
        for kind, pairs in self.leaks(groups).items():
            for pair, count in pairs.items():
                begin = f"{kind} {pair}: "
                examples = [e.removeprefix(begin) for e in self.examples if e.startswith(begin)]
                one, other = pair.split("/")
                what = {"functions": unit, "cves": "CVEs"}.get(kind, kind)
                what = what.removesuffix("s") if count == 1 else what
                equal = ", equal but for whitespace," if kind == "functions" else ""
                shown = f", for example {'; '.join(examples[:_SHOWN])}" if examples else ""
                lines.append(f"{count:,} {what}{equal} in both {one} and {other}{shown}")
        return lines

    def leaks(self, groups: Sequence[str]) -> dict[str, dict[str, int]]:
        """What two splits must not share but do, by kind and pair of splits."""
        found = {"functions": self.shared_functions} | {
            f"{group}s": self.shared_groups[group] for group in groups
        }
        kept = {kind: {k: n for k, n in pairs.items() if n} for kind, pairs in found.items()}
        return {kind: pairs for kind, pairs in kept.items() if pairs}


class SplitKeys:
    """Digests of a split's functions and groups, 8 bytes each, and its classes."""

    def __init__(self) -> None:
        self._codes = array("Q")
        self._groups = {group: array("Q") for group in GROUPS}
        self._targets, self._ids = array("i"), array("q")
        self.cwes: Counter[tuple[str, int]] = Counter()

    def append(self, texts: Sequence[str]) -> None:
        """Add the texts of records."""
        self._codes.frombytes(b"".join(map(collapsed_digest, texts)))

    def append_groups(self, samples: Sequence[CodeSample]) -> None:
        """Add the groups and classes of functions; language records have none."""
        for group, keys in self._groups.items():
            values = map(attrgetter(group), samples)
            keys.frombytes(b"".join([text_digest(v) if v else _UNKNOWN for v in values]))
        self._targets.extend(map(attrgetter("target"), samples))
        self._ids.extend(map(hash, map(attrgetter("id"), samples)))
        self.cwes.update(map(attrgetter("cwe", "target"), samples))

    def relabel(self, target_of: npt.NDArray[np.int64]) -> None:
        """Put the target of each number in its place."""
        self._targets = array("i", target_of[self.target_N].astype(np.int32).tobytes())
        cwes = Counter[tuple[str, int]]()
        for (cwe, number), count in self.cwes.items():
            cwes[cwe, int(target_of[number])] += count
        self.cwes = cwes

    @property
    def code_N(self) -> Digests:
        """Digest of every record, whitespace collapsed."""
        return np.frombuffer(self._codes, np.uint64)

    @property
    def target_N(self) -> npt.NDArray[np.int32]:
        """Target of every function; empty for language records."""
        return np.frombuffer(self._targets, np.int32)

    @property
    def id_N(self) -> npt.NDArray[np.int64]:
        """Hash of the id of every function; empty for language records."""
        return np.frombuffer(self._ids, np.int64)

    def group_N(self, field: str) -> Digests:
        """Digest of a group field of every function; 0 where it has no value."""
        return np.frombuffer(self._groups[field], np.uint64)

    def groups(self, field: str) -> Digests:
        """Distinct digests of a group field."""
        keys: Digests = np.unique(self.group_N(field))
        return keys[1:] if len(keys) and not keys[0] else keys  # 0 means that there is no value

    def cwe_table(self, classes: Classes) -> dict[str, list[int]]:
        """Functions of each weakness by class, the most frequent first."""
        total = Counter[str]()
        for (cwe, _), count in self.cwes.items():
            total[cwe or "unknown"] += count
        targets, often = range(classes.num_targets), total.most_common(_MOST_CWES)
        own = {cwe: "" if cwe == "unknown" else cwe for cwe, _ in often}
        return {
            cwe: classes.of_classes(np.array([self.cwes[value, n] for n in targets]))
            for cwe, value in own.items()
        }


def compare_splits(
    splits: Mapping[str, Sequence[CodeSample | RecordSource]],
    keys: Mapping[str, SplitKeys],
) -> SplitFacts:
    """Count what splits share, and repetitions within one.

    Args:
        splits: Records; only the origins of a few examples are read.
        keys: Their digests.
    """
    functions: dict[str, int] = {}
    groups: dict[str, dict[str, int]] = {group: {} for group in GROUPS}
    examples: list[str] = []
    for one, other in combinations(splits, 2):
        pair = f"{one}/{other}"
        places = _in_both(keys[one].code_N, keys[other].code_N)
        functions[pair] = len(places)
        examples += [
            f"functions {pair}: {splits[one][a].origin} = {splits[other][b].origin}"
            for a, b in places[:_SHOWN]
        ]
        for group, shared in groups.items():
            places = _in_both(keys[one].group_N(group), keys[other].group_N(group))
            shared[pair] = len(places)
            for a, b in places[:_SHOWN]:
                value = getattr(splits[one][a], group)
                where = f"{splits[one][a].origin} = {splits[other][b].origin}"
                examples.append(f"{group}s {pair}: {value} at {where}")
    repeated = {name: _repeated(each) for name, each in keys.items()}
    return SplitFacts(
        shared_functions=functions,
        shared_groups=groups,
        duplicates={name: num for name, (num, _) in repeated.items()},
        contradictory={name: num for name, (_, num) in repeated.items()},
        examples=examples,
    )


def repeated_ids(samples: RecordTable[Any], keys: SplitKeys) -> int:
    """Functions whose id an earlier file has too, for the same function.

    Args:
        samples: The records of a split, read where a message names them; ids of one file differ.
        keys: Their digests.

    Raises:
        DataError: Two functions have one id: predictions would be ambiguous.
    """
    order_N = np.argsort(keys.id_N, kind="stable")
    is_same = keys.id_N[order_N][1:] == keys.id_N[order_N][:-1]
    first, second = order_N[:-1][is_same], order_N[1:][is_same]
    (clashes,) = np.nonzero(keys.code_N[first] != keys.code_N[second])
    if len(clashes):
        at = clashes[second[clashes].argmin()]
        one, other = samples[int(first[at])], samples[int(second[at])]
        raise DataError(
            f"{other.origin}: has the id {other.id[:60]!r} of {one.origin}, another function, as"
            f" {len(clashes)} have; name another column: data.fields={{id: NAME}}; where no row has"
            " that column, a row's place is its id"
        )
    return len(first)


def refuse_leaks(
    facts: SplitFacts, groups: Sequence[str], allow: bool, unit: str = "functions"
) -> None:
    """Stop a training run whose splits share functions or the values of these groups.

    Raises:
        DataError: Something is in two splits, and `allow` is false.
    """
    leaks = facts.leak_lines(groups, unit)
    if leaks and not allow:
        raise DataError(
            "\n  ".join(["splits share what they must not:", *leaks])
            + "\nremove them from one split (a group: take it out of data.leak_groups), or set"
            " data.allow_leaks=true, which the report will state"
        )


def refuse_absent_class(
    targets: npt.NDArray[np.integer], name: str, classes: Classes | None = None
) -> None:
    """Training needs every class.

    Raises:
        DataError: Every function has the same target, or a class has no function.
    """
    classes = classes or Classes()
    present, counts = np.unique(targets, return_counts=True)
    if len(present) < 2:
        need = "both" if classes.is_binary else "others, too"
        raise DataError(f"{name}: all {counts[0]} functions have target {present[0]}; need {need}")
    if 0 in (counts_C := classes.counts(targets)):
        absent = classes.names[counts_C.index(0)]
        raise DataError(f"{name}: no function has the class {absent!r}; add some, or map it")


def _in_both(one_N: Digests, other_N: Digests) -> list[tuple[int, int]]:
    """Where each value that both have is found first, in one and in the other, in order.

    0 means that there is no value. Only shared values are sorted, and the smaller split.
    """
    if len(one_N) < len(other_N):
        return sorted((a, b) for b, a in _in_both(other_N, one_N))
    value_N = np.unique(other_N[other_N > 0])
    if not len(value_N):
        return []
    nearest_N = np.searchsorted(value_N, one_N).clip(max=len(value_N) - 1)
    (candidates,) = np.nonzero(value_N[nearest_N] == one_N)
    _, at_one, at_other = np.intersect1d(one_N[candidates], other_N, return_indices=True)
    return sorted(zip(candidates[at_one].tolist(), at_other.tolist(), strict=True))


def _repeated(keys: SplitKeys) -> tuple[int, int]:
    """Functions that repeat an earlier one, and those with different labels."""
    order_N = np.argsort(keys.code_N)
    code_N = keys.code_N[order_N]
    is_same = code_N[1:] == code_N[:-1]
    if not len(keys.target_N):
        return int(is_same.sum()), 0
    target_N = keys.target_N[order_N]
    differs = is_same & (target_N[1:] != target_N[:-1])
    return int(is_same.sum()), len(np.unique(code_N[1:][differs]))


def collapsed_digest(text: str) -> bytes:
    """A digest of 8 bytes that no change of whitespace alters."""
    return text_digest(" ".join(text.split()))


def text_digest(text: str) -> bytes:
    """A digest of 8 bytes."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
