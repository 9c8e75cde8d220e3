"""Functions that stand in several splits, or twice with different labels."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from data.errors import DataError
from data.records import CodeSample

_SHOWN = 3  # examples quoted in a message


@dataclass(frozen=True)
class SplitFacts:
    """Duplicates found by the digest of the whitespace-collapsed code."""

    shared_functions: dict[str, int]  # "train/test": functions of both
    shared_commits: dict[str, int]
    contradictory: dict[str, int]  # split: functions with both labels
    examples: list[str]  # "train.jsonl:3 = test.jsonl:9"

    @property
    def num_leaks(self) -> int:
        """Functions that stand in more than one split."""
        return sum(self.shared_functions.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values for data.json."""
        return asdict(self)


def code_digest(code: str) -> str:
    """sha256 of the code with every run of whitespace made one space."""
    return hashlib.sha256(" ".join(code.split()).encode("utf-8", "surrogatepass")).hexdigest()


def compare_splits(splits: Mapping[str, Sequence[CodeSample]]) -> SplitFacts:
    """Count the functions and commits that splits share, and contradictory labels within one."""
    origins = {
        name: {code_digest(s.code): s.origin for s in split} for name, split in splits.items()
    }
    commits = {name: {s.commit for s in split if s.commit} for name, split in splits.items()}
    functions_shared, commits_shared, examples = {}, {}, []
    for one, other in combinations(splits, 2):
        both = origins[one].keys() & origins[other].keys()
        functions_shared[f"{one}/{other}"] = len(both)
        commits_shared[f"{one}/{other}"] = len(commits[one] & commits[other])
        examples += [f"{origins[one][d]} = {origins[other][d]}" for d in sorted(both)[:_SHOWN]]
    contradictory = {name: _contradictions(split) for name, split in splits.items()}
    return SplitFacts(functions_shared, commits_shared, contradictory, examples)


def refuse_leaks(facts: SplitFacts, allow: bool) -> None:
    """Stop a training run whose splits share functions.

    Raises:
        DataError: A function stands in two splits and the recipe does not allow it.
    """
    if facts.num_leaks and not allow:
        shared = {pair: count for pair, count in facts.shared_functions.items() if count}
        raise DataError(
            f"functions stand in several splits (equal after whitespace): {shared}, for example"
            f" {'; '.join(facts.examples[:_SHOWN])}. Remove them from one split, or set"
            " data.allow_leaks=true, which the report will state"
        )


def refuse_one_class(targets: Sequence[int], name: str) -> None:
    """Training needs both classes.

    Raises:
        DataError: Every function has the same target.
    """
    if len(set(targets)) < 2:
        raise DataError(f"{name}: all {len(targets)} functions have target {targets[0]}; need both")


def _contradictions(split: Sequence[CodeSample]) -> int:
    seen: dict[str, set[int]] = {}
    for sample in split:
        seen.setdefault(code_digest(sample.code), set()).add(sample.target)
    return sum(len(targets) > 1 for targets in seen.values())
