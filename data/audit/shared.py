"""Exact duplicates, contradictory labels and shared groups, within and across splits."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from data.audit.columns import GROUP_FIELDS, Columns
from data.audit.facts import HashArray, Shared

_LISTED = 100

Places = list[npt.NDArray[np.int64]]  # of one thing in each part, ascending


def exact_duplicates(splits: Sequence[Columns]) -> list[Shared]:
    """Codes that repeat within a split, and codes that are in two; whitespace aside."""
    within = [_shared([s], [s.digest_N], _repeated(s.digest_N), _origins) for s in splits]
    across = [
        _shared(pair, [s.digest_N for s in pair], _both(*(s.digest_N for s in pair)), _origins)
        for pair in combinations(splits, 2)
    ]
    return within + across


def duplicate_ids(splits: Sequence[Columns]) -> list[Shared]:
    """Ids that repeat within a split."""
    return [_shared([s], [s.id_N], _repeated(s.id_N), _origins) for s in splits]


def contradictions(splits: Sequence[Columns]) -> list[Shared]:
    """Codes with both labels in a split, and codes whose labels differ between two splits."""
    found = []
    for parts in [*([split] for split in splits), *combinations(splits, 2)]:
        one, other = parts[0], parts[-1]
        (safe, vulnerable), (other_safe, other_vulnerable) = (
            [split.digest_N[split.target_N == target] for target in (0, 1)]
            for split in (one, other)
        )
        differ = np.union1d(_both(safe, other_vulnerable), _both(vulnerable, other_safe))
        found.append(_shared(parts, [s.digest_N for s in parts], differ, _labelled_origins))
    return found


def shared_groups(splits: Sequence[Columns]) -> dict[str, list[Shared]]:
    """By field: groups on both sides of each pair of splits; unused fields are left out."""
    found: dict[str, list[Shared]] = {}
    for field in GROUP_FIELDS:
        if not any(split.group_N[field].any() for split in splits):
            continue

        def value(parts: Sequence[Columns], places: Places, field: str = field) -> str:
            return str(getattr(parts[0].samples[int(places[0][0])], field))

        found[field] = []
        for pair in combinations(splits, 2):
            keys = [split.group_N[field] for split in pair]
            both = _both(*keys)
            found[field].append(_shared(pair, keys, both[both != 0], value))
    return found


def _shared(
    parts: Sequence[Columns],
    keys: Sequence[HashArray],
    things: HashArray,
    describe: Callable[[Sequence[Columns], Places], str],
) -> Shared:
    """What is known of the things that are in all parts.

    Args:
        parts: One split or two.
        keys: Of each part, by function.
        things: The keys that are shared.
        describe: One thing by its places in the parts.
    """
    return Shared(
        where="/".join(part.name for part in parts),
        num_things=len(things),
        num_functions={
            part.name: int(np.isin(keys_N, things).sum())
            for part, keys_N in zip(parts, keys, strict=True)
        },
        examples=[
            describe(parts, [np.flatnonzero(keys_N == thing) for keys_N in keys])
            for thing in things[:_LISTED]
        ],
    )


def _repeated(keys_N: HashArray) -> HashArray:
    values, counts = np.unique(keys_N, return_counts=True)
    repeated: HashArray = values[counts > 1]
    return repeated


def _both(one_N: HashArray, other_N: HashArray) -> HashArray:
    both: HashArray = np.intersect1d(one_N, other_N)
    return both


def _origins(parts: Sequence[Columns], places: Places) -> str:
    """ "train.jsonl:3 = test.jsonl:9": two of a split, or one of each."""
    second = 1 if len(parts) == 1 else 0
    pair = [(parts[0], places[0][0]), (parts[-1], places[-1][second])]
    return " = ".join(part.samples[int(place)].origin for part, place in pair)


def _labelled_origins(parts: Sequence[Columns], places: Places) -> str:
    """Two places whose labels differ, with their labels."""
    first, last = parts[0], parts[-1]
    for target in (0, 1):  # across splits either side can have either label
        one = places[0][first.target_N[places[0]] == target]
        other = places[-1][last.target_N[places[-1]] == 1 - target]
        if len(one) and len(other):
            break
    pair = [(first, int(one[0])), (last, int(other[0]))]
    return " = ".join(f"{p.samples[i].origin} ({p.target_N[i]})" for p, i in pair)
