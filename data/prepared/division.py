"""Records of train dealt to the splits that have no files: a pure function of what records say.

Neither the order of rows nor the names of files matter: groups are known by the smallest digest of
their records, and are dealt in an order that follows from sizes and digests.

Shapes: N records, G groups, C classes, S splits.
"""

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from data.config import DataConfig
from data.errors import DataError, MappingError
from data.kinds import FUNCTION, KINDS
from data.prepared.splits import Digests, SplitKeys
from data.records import CodeSample, Conversation, Document
from data.text.shingles import THRESHOLD, ShingleArray, jaccard, record_shingles

WINDOWS = -1
"""The part of a document of which every split gets its own window."""
PARTS = ("train", "valid", "test")
_HELD_OUT = {True: 0.05, False: 0.1}  # language records, functions
_MOST_UNDATED = 0.1  # of the functions of a split by time
_DATES: tuple[Callable[[str], float | datetime], ...] = (
    float,
    datetime.fromisoformat,
    parsedate_to_datetime,  # Thu, 07 Apr 2005 22:13:13 +0200
    lambda text: datetime.strptime(text, "%a %b %d %H:%M:%S %Y %z"),  # git log's own
)
_NUM_PERM, _BANDS = 126, 18  # a pair of similarity 0.8 meets in a band with probability 0.986
_MOST_COMPARED = 100_000  # functions whose shingles are kept: about 1 KB each
_NEIGHBOURS = 4  # of a band, that a function is compared with
_PERMUTATIONS = np.random.default_rng(0).integers(1, 1 << 63, (2, _NUM_PERM, 1), np.uint64) | 1

Ints = npt.NDArray[np.int64]


def shares(config: DataConfig, *, language: bool) -> dict[str, float]:
    """Share of train's records that a split without files gets."""
    given = {"valid": config.split.valid, "test": config.split.test}
    return {n: _HELD_OUT[language] if share is None else share for n, share in given.items()}


@dataclass
class Examined:
    """What decides the part of each record, collected in one pass.

    Attributes:
        config: split and leak_groups.
        shares: Of the splits without files.
        keys: Digests of questions or functions, and of groups.
        shingles: Of the functions, for near duplicates; None where there are too many.
        times: Of the functions, if the split is by time; NaN where unknown.
        num_documents: Records that are documents.
    """

    config: DataConfig
    shares: Mapping[str, float]
    keys: SplitKeys = field(default_factory=SplitKeys)
    shingles: list[ShingleArray] | None = field(default_factory=list)
    times: "array[float]" = field(default_factory=lambda: array("d"))
    num_documents: int = 0

    def add(self, records: Sequence[Any]) -> None:
        """Add a chunk of functions or of language records."""
        self.keys.append([_question(record) for record in records])
        self.num_documents += sum(isinstance(record, Document) for record in records)
        if not isinstance(records[0], CodeSample):
            return
        self.keys.append_groups(records)
        if self.config.split.by == "time":
            self.times.extend(_seconds(sample) for sample in records)
        if self.config.split.by == "random" or len(self.keys.code_N) > _MOST_COMPARED:
            self.shingles = None
        if self.shingles is not None:
            self.shingles += map(record_shingles, records)


def divide(examined: Examined) -> tuple[npt.NDArray[np.int8], dict[str, Any]]:
    """The part of each record, as an index of PARTS, and facts for data.json.

    Raises:
        DataError: Fewer groups than splits.
    """
    keys, config = examined.keys, examined.config
    code_N = keys.code_N
    names = list(examined.shares)
    fewest = min(examined.shares.values()) * len(np.unique(code_N))
    if examined.num_documents == len(code_N) and fewest < 0.5:
        return np.full(len(code_N), WINDOWS, np.int8), {"by": "windows of each text"}
    group_N, facts = _groups(examined)
    sizes_G = np.bincount(group_N)
    if len(sizes_G) <= len(names):
        raise DataError(
            f"data.train: its {len(code_N)} records are {len(sizes_G)} groups that stay together"
            f" ({facts['by']}), too few for train, {' and '.join(names)}; name files for them, or"
            " hold fewer together: data.split={by: random} and data.leak_groups=[] for functions"
        )
    key_G = np.full(len(sizes_G), np.iinfo(np.uint64).max)
    np.minimum.at(key_G, group_N, code_N)
    share_S = np.array([1 - sum(examined.shares.values()), *examined.shares.values()])
    if config.split.by == "time":
        time_N = np.frombuffer(examined.times)
        facts["num_undated"] = _undated(time_N)
        part_G = _by_time(time_N, group_N, key_G, share_S)
    else:
        part_G = _deal(group_N, _classes(keys), key_G, share_S)
    part_S = np.array([PARTS.index(name) for name in ("train", *names)], np.int8)
    largest = {"num_groups": len(sizes_G), "largest_group": int(sizes_G.max())}
    return part_S[part_G][group_N], facts | largest


def sampled(keys: SplitKeys, num: int) -> npt.NDArray[np.bool_]:
    """Which records to try: always the same, classes in their shares, at least one of each."""
    code_N, class_N = keys.code_N, _classes(keys)
    rank_N = np.zeros(len(code_N))  # within the class, from 0 to 1
    for c in np.unique(class_N):
        (own,) = np.nonzero(class_N == c)
        rank_N[own[np.argsort(code_N[own], kind="stable")]] = np.arange(len(own)) / len(own)
    is_sampled_N = np.zeros(len(code_N), np.bool_)
    is_sampled_N[np.lexsort((code_N, rank_N))[:num]] = True
    return is_sampled_N


def _classes(keys: SplitKeys) -> npt.NDArray[np.int32]:
    """The class of each record; language records have one."""
    return keys.target_N if len(keys.target_N) else np.zeros(len(keys.code_N), np.int32)


def window(text: str, part: str, held_out: Mapping[str, float]) -> str:
    """A split's window of a text, which begins with train's; cut where a line or a word ends."""
    names = ["train", *held_out]
    ends = [0]
    for share in np.cumsum([1 - sum(held_out.values()), *held_out.values()])[:-1]:
        end = round(share * len(text))
        line, word = (text.rfind(blank, ends[-1], end) for blank in "\n ")
        blank = line if line >= 0 else word
        ends.append(blank + 1 if blank >= 0 else end)
    ends.append(len(text))
    place = names.index(part)
    return text[ends[place] : ends[place + 1]]


def _groups(examined: Examined) -> tuple[Ints, dict[str, Any]]:
    """The group of each record, and what holds groups together.

    Raises:
        DataError: By project, and no function has one.
    """
    keys, config = examined.keys, examined.config
    by, is_language = config.split.by, not len(examined.keys.target_N)
    if is_language:
        if by not in ("group", "random"):
            raise MappingError(f"data.split by {by} is for functions; take group")
        return _components([keys.code_N]), {"by": "question"}
    fields = [] if by == "random" else list(config.leak_groups)
    if by == "project":
        fields = [*fields, "project"]
        if not keys.group_N("project").any():
            raise DataError("data.split by project: no function names its project; map the column")
    held = [keys.code_N, *(keys.group_N(name) for name in dict.fromkeys(fields))]
    facts: dict[str, Any] = {"by": ", ".join(["function", *dict.fromkeys(fields)])}
    if by == "time":
        facts["by"] = f"time, then {facts['by']}"
    group_N = _components(held)
    if examined.shingles is None:
        too_many = f"not looked for among more than {_MOST_COMPARED:,} functions"
        return group_N, facts | ({} if by == "random" else {"near_duplicates": too_many})
    near_N = _components([*held, _near(examined.shingles, keys.code_N)])
    # what is all alike, as generated code is, cannot be kept apart
    if 1 + np.bincount(near_N).max() > len(near_N) * (1 - sum(examined.shares.values())):
        return group_N, facts | {"near_duplicates": "most functions are alike: not kept together"}
    facts["by"] += ", near duplicates"
    return near_N, facts


def _components(keys: Sequence[npt.NDArray[Any]]) -> Ints:
    """Records that share a key that is not 0, directly or through others, have one number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = [], []
    for key_N in keys:
        places = np.flatnonzero(key_N)
        _, first, inverse = np.unique(key_N[places], return_index=True, return_inverse=True)
        one.append(places)
        other.append(places[first[inverse]])
    edges = (np.concatenate(one), np.concatenate(other))
    graph = coo_array((np.ones(len(edges[0]), np.bool_), edges), shape=(len(keys[0]),) * 2)
    groups: Ints = connected_components(graph, directed=False)[1]
    return groups


def _near(sets: Sequence[ShingleArray], code_N: Digests) -> Ints:
    """A number for each cluster of near duplicates, from 1 on; the same whatever their order."""
    signature_NP = np.zeros((len(sets), _NUM_PERM), np.uint32)
    factor_P1, offset_P1 = _PERMUTATIONS
    for n, one in enumerate(sets):
        if len(one):
            signature_NP[n] = ((one * factor_P1 + offset_P1) >> np.uint64(32)).min(axis=1)
    cluster = list(range(len(sets)))

    def root(n: int) -> int:
        while cluster[n] != n:
            cluster[n] = cluster[cluster[n]]
            n = cluster[n]
        return n

    for band_NR in np.split(signature_NP, _BANDS, axis=1):
        _, bucket_N = np.unique(band_NR, axis=0, return_inverse=True)
        order_N = np.lexsort((code_N, bucket_N))
        bucket_N = bucket_N[order_N]
        for place in (np.flatnonzero(bucket_N[1:] == bucket_N[:-1]) + 1).tolist():
            n, first = int(order_N[place]), max(0, place - _NEIGHBOURS)
            for before in order_N[first:place][bucket_N[first:place] == bucket_N[place]].tolist():
                a, b = root(before), root(n)
                if a != b and jaccard(sets[before], sets[n]) >= THRESHOLD:
                    cluster[max(a, b)] = min(a, b)
    return np.array([root(n) for n in range(len(sets))]) + 1


def _deal(
    group_N: Ints, class_N: npt.NDArray[Any], key_G: Digests, share_S: npt.NDArray[np.float64]
) -> Ints:
    """The split of each group: large ones first, each where most of its classes are missing.

    Groups of one record, the rest, then fill each split's share of each class, in the order of
    their digests, which is as good as random.
    """
    count_GC = np.zeros((len(key_G), int(class_N.max()) + 1), np.int64)
    np.add.at(count_GC, (group_N, class_N), 1)
    size_G, total_C = count_GC.sum(axis=1), count_GC.sum(axis=0)
    missing_SC = share_S[:, None] * total_C
    part_G = np.zeros(len(key_G), np.int64)
    order_G = np.lexsort((key_G, -size_G))
    dealt_S, weight_C = np.zeros(len(share_S), np.int64), 1 / np.maximum(total_C, 1) ** 2

    def give(g: int, part: int) -> None:
        part_G[g] = part
        missing_SC[part] -= count_GC[g]
        dealt_S[part] += 1

    for number, g in enumerate(order_G[size_G[order_G] > 1].tolist()):
        need_S = (missing_SC * (count_GC[g] * weight_C)).sum(axis=1)
        if len(key_G) - number <= (dealt_S == 0).sum():  # no split stays empty
            need_S[dealt_S > 0] = -np.inf
        give(g, int(need_S.argmax()))
    ones = order_G[size_G[order_G] == 1]
    class_of = count_GC[ones].argmax(axis=1)
    for c in range(len(total_C)):
        own = ones[class_of == c]
        ends_S = np.cumsum(np.round(np.maximum(missing_SC[1:, c], 0)).astype(int))
        for part, chosen in enumerate(np.split(own, np.minimum(ends_S, len(own)))[:-1], start=1):
            part_G[chosen] = part
            dealt_S[part] += len(chosen)
    empty = np.flatnonzero(dealt_S[1:] == 0) + 1  # a share of less than half a record
    for part in empty.tolist():
        free = ones[part_G[ones] == 0]
        part_G[free[:1]] = part
    return part_G


def _by_time(
    time_N: npt.NDArray[np.float64], group_N: Ints, key_G: Digests, share_S: npt.NDArray[np.float64]
) -> Ints:
    """The split of each group by its newest record: train's are the oldest, and the undated."""
    newest_G = np.full(len(key_G), -np.inf)
    np.fmax.at(newest_G, group_N, time_N)
    order_G = np.lexsort((key_G, newest_G))
    before_G = np.cumsum(np.bincount(group_N)[order_G])
    part_G = np.empty(len(key_G), np.int64)
    part_G[order_G] = np.searchsorted(np.cumsum(share_S)[:-1] * len(group_N), before_G, "left")
    return part_G


def _question(record: CodeSample | Conversation | Document) -> str:
    """Everything before the first answer, or a whole function or document."""
    if not isinstance(record, Conversation):
        return record.text
    roles = [turn.role for turn in record.turns]
    asked = roles.index("user") if "user" in roles else 0  # a greeting may come before
    first = roles.index("assistant", asked)
    return "\n".join(turn.content for turn in record.turns[:first])


def _undated(time_N: npt.NDArray[np.float64]) -> int:
    """Functions without a date: a few are taken for old.

    Raises:
        DataError: There are more than a few.
    """
    num = int(np.isnan(time_N).sum())
    if num > _MOST_UNDATED * len(time_N):
        columns = ", ".join(KINDS[FUNCTION].optional["date"])
        raise DataError(
            f"data.split by time: {num:,} of {len(time_N):,} functions have no date; it is looked"
            f" for in the columns {columns}; name another with data.fields={{date: NAME}}, or take"
            " data.split={by: group}"
        )
    return num


def _seconds(sample: CodeSample) -> float:
    """When a function was written: a number as it is, or a date; NaN where it is unknown.

    Raises:
        DataError: The date is not written in one of _DATES.
    """
    if not sample.date:
        return math.nan
    for read in _DATES:
        with suppress(ValueError):
            moment = read(sample.date)
            if isinstance(moment, float):
                return moment
            return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    raise DataError(
        f"{sample.origin}: data.split is by time, but the date is {sample.date[:40]!r}; it must be"
        " a number, a date such as 2021-03-31 or 2021-03-31T12:00:00Z, or as git log writes it;"
        " another column: data.fields={date: NAME}"
    )
