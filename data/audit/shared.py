"""Exact duplicates, contradictory labels and shared groups, within a split and between two."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import numpy.typing as npt

from data.audit.columns import Columns
from data.audit.facts import HashArray, Shared
from data.prepared.splits import GROUPS

_LISTED = 100

Parts = Sequence[Columns]  # one split or two
Places = list[npt.NDArray[np.int64]]  # functions with one key in each part, ascending


def exact_duplicates(splits: Sequence[Columns]) -> list[Shared]:
    """Codes that repeat within a split, and codes that are in two; whitespace aside."""
    return [
        _shared(parts, [split.keys.code_N for split in parts], _origins)
        for parts in _within_and_between(splits)
    ]


def duplicate_ids(splits: Sequence[Columns]) -> list[Shared]:
    """Ids that repeat within a split."""
    return [_shared([split], [split.id_N], _origins) for split in splits]


def contradictions(splits: Sequence[Columns]) -> list[Shared]:
    """Codes with different labels in a split, and codes of two splits that differ there."""
    found = []
    for parts in _within_and_between(splits):
        codes = [split.keys.code_N for split in parts]
        code_N = np.concatenate(codes)
        target_N = np.concatenate([split.keys.target_N for split in parts])
        order_N = np.lexsort((target_N, code_N))
        code_N, target_N = code_N[order_N], target_N[order_N]
        differs_N = (code_N[1:] == code_N[:-1]) & (target_N[1:] != target_N[:-1])
        differ = np.unique(code_N[1:][differs_N])
        for own in codes:
            differ = np.intersect1d(differ, own)
        found.append(_shared(parts, codes, _labelled_origins, differ))
    return found


def shared_groups(splits: Sequence[Columns]) -> dict[str, list[Shared]]:
    """By field: groups in both of each two splits; unused fields are left out."""
    return {
        field: [
            _shared(pair, [split.keys.group_N(field) for split in pair], partial(_value, field))
            for pair in combinations(splits, 2)
        ]
        for field in GROUPS
        if any(split.keys.group_N(field).any() for split in splits)
    }


def _within_and_between(splits: Sequence[Columns]) -> list[Parts]:
    return [*([split] for split in splits), *combinations(splits, 2)]


def _shared(
    parts: Parts,
    keys: Sequence[HashArray],
    describe: Callable[[Parts, Places], str],
    found: HashArray | None = None,
) -> Shared:
    """Count functions by what they share.

    Args:
        keys: One array for each part; 0 where a function has no key.
        describe: Names one key by its places in the parts.
        found: The shared keys; by default those that repeat in one part or are in both.
    """
    if found is None:
        values, counts = np.unique(keys[0], return_counts=True)
        found = values[counts > 1] if len(keys) == 1 else np.intersect1d(keys[0], keys[-1])
        found = found[found != 0]
    return Shared(
        where="/".join(part.name for part in parts),
        num_things=len(found),
        num_functions={
            part.name: int(np.isin(keys_N, found).sum())
            for part, keys_N in zip(parts, keys, strict=True)
        },
        examples=[
            describe(parts, [np.flatnonzero(keys_N == key) for keys_N in keys])
            for key in found[:_LISTED]
        ],
    )


def _value(field: str, parts: Parts, places: Places) -> str:
    return str(getattr(parts[0].samples[int(places[0][0])], field))


def _origins(parts: Parts, places: Places) -> str:
    """ "train.jsonl:3 = test.jsonl:9": two places in a split, or one in each."""
    other = places[0][1] if len(parts) == 1 else places[1][0]
    pair = [(parts[0], places[0][0]), (parts[-1], other)]
    return " = ".join(part.samples[int(place)].origin for part, place in pair)


def _labelled_origins(parts: Parts, places: Places) -> str:
    """Two places whose labels differ, with their labels; the lower target first in a split."""
    own = [part.keys.target_N[at] for part, at in zip(parts, places, strict=True)]
    one = places[0][own[0].argmin()]
    if own[-1].max() == own[0].min():  # across splits either side can have either label
        one = places[0][own[0].argmax()]
    target = parts[0].keys.target_N[one]
    other = places[-1][(own[-1] != target).argmax()]
    pair = [(parts[0], int(one)), (parts[-1], int(other))]
    return " = ".join(
        f"{p.samples[i].origin} ({p.classes.text(int(p.keys.target_N[i]))})" for p, i in pair
    )
