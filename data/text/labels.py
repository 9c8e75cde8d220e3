"""Labels of the data -> classes, in an order that depends on the labels alone.

A function has one class; or, where several can hold at once (multi-label), any number of them. Its
target is one number either way: its class id, or the place of its set of classes in Classes.sets.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data.config import DataConfig
from data.errors import DataError, MappingError

VULNERABLE = ("not vulnerable", "vulnerable")  # names of the usual two classes, by id
OTHER = "other"
MOST_LABELS = 10_000  # different ones of a split; more are the values of another column
_NOTHING = {
    *(VULNERABLE[0], "non-vulnerable", "safe", "good", "fixed", "benign", "clean", "normal"),
    *("no", "none", "false", "negative"),
}
Names = tuple[str, ...]  # of a function: one, or any number, sorted
Ints = npt.NDArray[np.int64]


@dataclass
class MetLabels:
    """The labels of a split, numbered as they are met; classes that are fixed come first.

    Attributes:
        numbers: Names of a function -> their number.
        places: Where each was met first; "" for a fixed one.
        width: Length of lists with a 0 or 1 for each class; 0: lists hold names; None: no list yet.
        fixed: The classes by id, where the recipe names them.
    """

    numbers: dict[Names, int] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    width: int | None = None
    fixed: Names = ()

    def fix(self, names: Names) -> None:
        """Number the classes that the recipe names by their ids."""
        if not self.numbers:
            self.fixed = names
            self.numbers = {(name,): number for number, name in enumerate(names)}
            self.places = [""] * len(names)

    @property
    def ranks(self) -> Ints:
        """The place of each number when names are sorted: no order of rows changes it."""
        return np.argsort(sorted(range(len(self.numbers)), key=list(self.numbers).__getitem__))

    def number(self, names: Names, place: str) -> int:
        """The number of a function's names."""
        if names not in self.numbers:
            self.numbers[names] = len(self.places)
            self.places.append(place)
            if len(self.places) > MOST_LABELS:
                raise DataError(
                    f"{place}: more than {MOST_LABELS:,} different labels; map the right column"
                    " with data.fields={target: NAME}"
                )
        return self.numbers[names]


@dataclass(frozen=True)
class Classes:
    """The classes of a run.

    Attributes:
        names: By class id.
        sizes: Training functions of each.
        sets: Class ids of each target where several hold at once; None: one class each.
        merged: Rare labels that became OTHER, with their training functions.
    """

    names: Names = VULNERABLE
    sizes: tuple[int, ...] = ()
    sets: tuple[tuple[int, ...], ...] | None = None
    merged: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Classes":
        """What data.json says; a run of an older version told two classes apart."""
        saved = facts.get("classes")
        if saved is None:
            return cls()
        sets = saved["sets"]
        return cls(
            tuple(saved["names"]),
            tuple(saved["sizes"]),
            None if sets is None else tuple(map(tuple, sets)),
            saved["merged"],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for data.json."""
        return asdict(self) | {"problem_type": self.problem_type}

    @property
    def problem_type(self) -> str:
        """As transformers calls it."""
        kind = "single" if self.sets is None else "multi"
        return f"{kind}_label_classification"

    @property
    def are_usual(self) -> bool:
        """Whether a function is vulnerable or not."""
        return self.names == VULNERABLE and self.sets is None

    @property
    def shown(self) -> Names:
        """Names for tables."""
        return ("safe", "vulnerable") if self.are_usual else self.names

    @property
    def is_binary(self) -> bool:
        """Whether one threshold decides between two classes."""
        return len(self.names) == 2 and self.sets is None

    @property
    def members_KC(self) -> npt.NDArray[np.bool_] | None:
        """Which classes (C) each target (K) holds; None where a target is its class."""
        if self.sets is None:
            return None
        members = np.zeros((len(self.sets), len(self.names)), np.bool_)
        for target, ids in enumerate(self.sets):
            members[target, list(ids)] = True
        return members

    @property
    def num_targets(self) -> int:
        """Classes, or sets of classes."""
        return len(self.names if self.sets is None else self.sets)

    @property
    def informative(self) -> range:
        """The classes whose counts give those of the others: of two the second."""
        return range(1, 2) if self.is_binary else range(len(self.names))

    @property
    def is_safe_K(self) -> npt.NDArray[np.bool_]:
        """Which targets (K) say that nothing was found: of two classes the first."""
        parts = [set(name.casefold().split("/")) for name in self.names]  # "safe/fixed": two labels
        safe = {0} if self.is_binary else {n for n, own in enumerate(parts) if own <= _NOTHING}
        return np.array([safe.issuperset(ids) for ids in self._ids_K])

    def holds_K(self, number: int) -> npt.NDArray[np.bool_]:
        """Which targets (K) hold a class."""
        return np.array([number in ids for ids in self._ids_K])

    @property
    def _ids_K(self) -> Sequence[tuple[int, ...]]:
        return [(n,) for n in range(len(self.names))] if self.sets is None else self.sets

    def counts(self, target_N: npt.NDArray[np.integer]) -> list[int]:
        """Functions of each class."""
        return self.of_classes(np.bincount(target_N, minlength=self.num_targets))

    def of_classes(self, count_K: npt.NDArray[np.integer]) -> list[int]:
        """Functions of each class, from those of each target (K)."""
        members_KC = self.members_KC
        counts_C: list[int] = (count_K if members_KC is None else count_K @ members_KC).tolist()
        return counts_C

    def text(self, target: int) -> str:
        """The names of a target."""
        return ", ".join(self.names[number] for number in self._ids_K[target]) or "none"


def class_counts(tokens: Mapping[str, Any]) -> list[int]:
    """Functions of each class by the token facts of data.json, also of an older version."""
    if "class_counts" in tokens:
        return list(tokens["class_counts"])
    return [tokens["num_functions"] - tokens["num_positive"], tokens["num_positive"]]


def says_nothing(name: str) -> bool:
    """Whether a class says that nothing was found."""
    return name.casefold() in _NOTHING


def fixed_names(config: DataConfig) -> Names:
    """The classes that the recipe names, by id; empty where they are derived from the data.

    Raises:
        MappingError: data.labels leaves a number out, or mixes numbers and names.
    """
    labels = config.labels
    ids = set(labels.values()) if isinstance(labels, dict) else {labels}
    if not ids <= {0, 1} and (config.target != "label" or "before" in config.fields):
        raise MappingError(
            f"data.labels {labels}: with data.target={config.target}, or a function before and"
            " after its fix, labels become 0 (not vulnerable) or 1 (vulnerable)"
        )
    if config.target != "label":
        return ()
    if ids <= {0, 1}:
        return VULNERABLE
    if not isinstance(labels, dict):
        return ()
    if not any(isinstance(value, int) for value in ids):
        return tuple(dict.fromkeys(map(str, labels.values())))
    if ids != set(range(len(ids))):
        raise MappingError(
            f"data.labels {labels} must become the class ids 0, 1, ... with none left out, of two"
            " classes 0 (not vulnerable) and 1 (vulnerable); or names of classes"
        )
    names = ["/".join(n for n, value in labels.items() if value == i) for i in range(len(ids))]
    if len(set(names)) < len(names):
        raise MappingError(f"data.labels {labels}: two classes would be called {names}")
    return tuple(names)


def settled(
    met: Mapping[str, MetLabels],
    counts: Mapping[str, Ints],
    config: DataConfig,
    given: Classes | None = None,
) -> tuple[Classes, dict[str, Ints]]:
    """The classes of a run, and the target of each number that a split has met.

    Args:
        met: Labels by split.
        counts: Functions of each number, by split.
        config: labels, target and min_class_size.
        given: Classes of an earlier run, for a split without a train.

    Raises:
        DataError: A label of one function alone; a label that train does not have.
    """
    if given is None:
        given = _classes_of_train(met["train"], counts["train"], config)
    ids = {name: number for number, name in enumerate(given.names)}
    is_one = given.sets is None and config.target == "label"
    found = {
        split: [
            _ids(names, labels.places[number], ids, given, is_one=is_one)
            if counts[split][number]
            else ()
            for names, number in labels.numbers.items()
        ]
        for split, labels in met.items()
    }
    if given.sets is None:
        return given, {n: np.array([(*i, 0)[0] for i in each]) for n, each in found.items()}
    sets = tuple(sorted({i for each in found.values() for i in each}))
    place = {ids: target for target, ids in enumerate(sets)}
    classes = Classes(given.names, given.sizes, sets, given.merged)
    return classes, {n: np.array([place[i] for i in each]) for n, each in found.items()}


def _classes_of_train(labels: MetLabels, counts: Ints, config: DataConfig) -> Classes:
    num = Counter[str]()
    places: dict[str, str] = {}
    for names, number in labels.numbers.items():
        for name in names:
            num[name] += int(counts[number])
            places.setdefault(name, labels.places[number])
    is_several = labels.width is not None or config.target == "cwes"
    names, merged = fixed_names(config), dict[str, int]()
    if not names:
        present = {name: count for name, count in num.items() if count}
        merged = {n: c for n, c in present.items() if c < config.min_class_size and n != OTHER}
        num[OTHER] += sum(merged.values())
        kept = present.keys() - merged.keys() | ({OTHER} if merged else set())
        names = tuple(sorted(kept, key=_order))
        once = [name for name in names if num[name] < 2 and name != OTHER]
        if once and (is_several or len(names) > 2):
            raise DataError(
                f"{places[once[0]]}: {once[0]!r} is the label of one training function alone, as"
                f" are {len(once) - 1} others; correct it, or raise data.min_class_size, which"
                f" makes rare labels the class {OTHER!r}"
            )
    sizes = tuple(num[name] for name in names)
    return Classes(names, sizes, () if is_several else None, merged)


def _ids(
    names: Names, place: str, ids: Mapping[str, int], classes: Classes, *, is_one: bool
) -> tuple[int, ...]:
    """Class ids of a function; where one of several weaknesses counts, the most frequent one."""
    if is_one and len(names) != 1:
        raise DataError(
            f"{place}: a list of {len(names)} labels, but every training function has one label;"
            " give every split the same kind"
        )
    other = ids.get(OTHER)
    found = {ids.get(name, other) for name in names}
    known = sorted(number for number in found if number is not None)
    if None in found:
        unknown = next(name for name in names if name not in ids)
        raise DataError(
            f"{place}: no training function has the label {unknown!r}; there are"
            f" {list(classes.names[:20])}; remove these functions, or set data.min_class_size,"
            f" which makes rare labels the class {OTHER!r}"
        )
    if classes.sets is not None or len(known) == 1:
        return tuple(known)
    return tuple(sorted(known, key=lambda number: (-classes.sizes[number], number))[:1])


def _order(name: str) -> tuple[Any, ...]:
    """Classes that say "nothing found" first, OTHER last, between them as people count."""
    parts: Iterable[str] = re.split(r"(\d+)", name.casefold())
    natural = [int(part) if place % 2 else part for place, part in enumerate(parts)]
    return not says_nothing(name), name == OTHER, natural, name
