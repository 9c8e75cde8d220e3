"""Exact duplicates, contradictory labels and shared groups, within and across splits."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from data.audit.columns import GROUP_FIELDS, Columns
from data.audit.facts import HashArray, Shared

_LISTED = 100


def exact_duplicates(splits: Sequence[Columns]) -> list[Shared]:
    """Codes that stand several times in a split, and codes that stand in two; whitespace aside."""
    found = []
    for split in splits:
        values, counts = np.unique(split.digest_N, return_counts=True)
        found.append(_shared([split], values[counts > 1], _digests, _origins))
    for one, other in combinations(splits, 2):
        both = np.intersect1d(one.digest_N, other.digest_N)
        found.append(_shared([one, other], both, _digests, _origins))
    return found


def duplicate_ids(splits: Sequence[Columns]) -> list[Shared]:
    """Ids that stand several times in a split."""
    found = []
    for split in splits:
        values, counts = np.unique(split.id_N, return_counts=True)
        found.append(_shared([split], values[counts > 1], _ids, _origins))
    return found


def contradictions(splits: Sequence[Columns]) -> list[Shared]:
    """Codes with both labels in a split, and codes whose labels differ between two splits."""
    found = []
    for split in splits:
        both = np.intersect1d(_labelled(split, 0), _labelled(split, 1))
        found.append(_shared([split], both, _digests, _labelled_origins))
    for one, other in combinations(splits, 2):
        differ = np.union1d(
            np.intersect1d(_labelled(one, 0), _labelled(other, 1)),
            np.intersect1d(_labelled(one, 1), _labelled(other, 0)),
        )
        found.append(_shared([one, other], differ, _digests, _labelled_origins))
    return found


def shared_groups(splits: Sequence[Columns]) -> dict[str, list[Shared]]:
    """By field: groups on both sides of each pair of splits; fields nobody names are left out."""
    found = {}
    for field in GROUP_FIELDS:
        if not any(split.group_N[field].any() for split in splits):
            continue

        def keys(split: Columns, field: str = field) -> HashArray:
            return split.group_N[field]

        def values(
            parts: list[Columns], places: list[npt.NDArray[np.int64]], field: str = field
        ) -> str:
            return str(getattr(parts[0].samples[int(places[0][0])], field))

        found[field] = [
            _shared([one, other], _known(keys(one), keys(other)), keys, values)
            for one, other in combinations(splits, 2)
        ]
    return found


def _shared(
    parts: list[Columns],
    things: HashArray,
    keys: Callable[[Columns], HashArray],
    describe: Callable[[list[Columns], list[npt.NDArray[np.int64]]], str],
) -> Shared:
    examples = []
    for thing in things[:_LISTED]:
        places = [np.flatnonzero(keys(part) == thing) for part in parts]
        examples.append(describe(parts, places))
    return Shared(
        where="/".join(part.name for part in parts),
        num_things=len(things),
        num_functions={part.name: int(np.isin(keys(part), things).sum()) for part in parts},
        examples=examples,
    )


def _digests(split: Columns) -> HashArray:
    return split.digest_N


def _ids(split: Columns) -> HashArray:
    return split.id_N


def _labelled(split: Columns, target: int) -> HashArray:
    labelled: HashArray = split.digest_N[split.target_N == target]
    return labelled


def _known(one: HashArray, other: HashArray) -> HashArray:
    both = np.intersect1d(one, other)
    known: HashArray = both[both != 0]
    return known


def _origins(parts: list[Columns], places: list[npt.NDArray[np.int64]]) -> str:
    """ "train.jsonl:3 = test.jsonl:9": two of a split, or one of each."""
    return " = ".join(part.samples[place].origin for part, place in _two(parts, places))


def _labelled_origins(parts: list[Columns], places: list[npt.NDArray[np.int64]]) -> str:
    """Two places whose labels differ, with their labels."""
    first, last = parts[0], parts[-1]
    zero = places[0][first.target_N[places[0]] == 0]
    one = places[-1][last.target_N[places[-1]] == 1]
    if not (len(zero) and len(one)):  # across splits the labels may stand the other way round
        zero = places[0][first.target_N[places[0]] == 1]
        one = places[-1][last.target_N[places[-1]] == 0]
    pair = [(first, int(zero[0])), (last, int(one[0]))]
    return " = ".join(f"{p.samples[i].origin} ({p.target_N[i]})" for p, i in pair)


def _two(parts: list[Columns], places: list[npt.NDArray[np.int64]]) -> list[tuple[Columns, int]]:
    if len(parts) == 1:
        return [(parts[0], int(places[0][0])), (parts[0], int(places[0][1]))]
    return [(part, int(place[0])) for part, place in zip(parts, places, strict=True)]
