"""Which columns of a file are the fields of a kind, and which kind a file holds."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from data.config import DataConfig
from data.errors import DataError, MappingError
from data.kinds import FUNCTION, KINDS, SIGNALS
from data.readers.names import parsed
from data.readers.reading import RowFault, listed

_SPLITS = ("split", "partition", "set")
FOLDER_LABELS = {"vulnerable": 1, "safe": 0}


def folder_labels(config: DataConfig) -> Mapping[str, int | str]:
    """Label folders and their classes; empty with data.labels=auto, where any name is a class."""
    labels = config.labels or FOLDER_LABELS
    return labels if isinstance(labels, dict) else {}


def are_labels(folders: Collection[str], config: DataConfig) -> bool:
    """Whether folders are labels; any can be one with data.labels=auto and data.format=folder."""
    known = folder_labels(config)
    if known:
        return set(folders) <= known.keys()
    return config.format == "folder" and not any(parsed(n, is_folder=True).split for n in folders)


@dataclass(frozen=True)
class Found:
    """The columns of rows that have the same names.

    Attributes:
        kind: A name in KINDS.
        needed: Our field -> the file's column, of fields that every row has.
        optional: The same for fields that these rows have and others may lack.
        aside: The same for what stands beside the turns of a conversation.
        signals: Columns of SIGNALS that are not read: a row that fills one is refused.
        ids: Columns of the id; the first one that is not empty counts.
        splits: Columns, not read, that may say which split a row is of.
    """

    kind: str
    needed: Mapping[str, str]
    optional: Mapping[str, str]
    ids: tuple[str, ...]
    aside: Mapping[str, str] = field(default_factory=dict)
    signals: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    @property
    def known(self) -> set[str]:
        """Every column that is read."""
        return {
            *self.needed.values(),
            *self.optional.values(),
            *self.aside.values(),
            *self.signals,
            *self.ids,
        }

    @cached_property
    def label(self) -> str | None:
        """The column of the label, if there is one."""
        return self.needed.get(KINDS[self.kind].label)

    @property
    def texts(self) -> list[str]:
        """Columns that must hold text."""
        if KINDS[self.kind].holds == "messages":
            return []
        return [column for column in self.needed.values() if column != self.label]


class Columns:
    """Finds the columns of a kind. Kind "auto" is decided by the first names that it sees.

    Args:
        config: fields and labels.
        kind: A name in KINDS, or "auto".

    Attributes:
        labels: data.labels; empty where labels are the numbers 0 and 1.

    Raises:
        DataError: data.fields maps a field that the kind does not have.
        MappingError: The same for functions, or half a pair is mapped.
    """

    def __init__(self, config: DataConfig, kind: str) -> None:
        self._kind, self._fields, self.labels = kind, config.fields, config.labels
        self._ignored = config.ignore_columns
        _refuse_other_fields(config.fields, list(KINDS) if kind == "auto" else [kind])
        self._is_pair = _is_pair(config.fields)

    def find(self, names: Collection[str], where: str) -> Found:
        """The columns among the names of a row or file.

        Raises:
            RowFault: One that every row needs is not there.
            DataError: The names do not fit any kind; begins with `where`.
        """
        if self._kind == "auto":
            self._kind = self._kind_of(names, where)
        return self._found(self._kind, names)

    def find_in_file(self, names: Collection[str], where: str) -> Found:
        """The same for formats whose columns are those of the whole file.

        Raises:
            DataError: Beginning with `where`.
        """
        try:
            return self.find(names, where)
        except RowFault as fault:
            raise DataError(f"{where}: {fault}") from fault

    def kind_or(self, kind: str) -> str:
        """The kind; if nothing decided it yet, this one from now on."""
        if self._kind == "auto":
            self._kind = kind
        return self._kind

    def _kind_of(self, names: Collection[str], where: str) -> str:
        for name, kind in KINDS.items():
            if self._fields.keys() <= set(kind.fields):
                if self._is_pair:
                    return name
                with suppress(RowFault):
                    self._found(name, names)
                    return name
        advice = {SIGNALS[name] for name in names if name in SIGNALS} - {""}
        kinds = "; ".join(f"{name}: {', '.join(kind.needed)}" for name, kind in KINDS.items())
        raise DataError(
            f"{where}: the fields {listed(sorted(map(str, names)))} do not fit any kind of record"
            f" ({kinds}); {'; '.join(advice) or 'set data.records and name them with data.fields'}"
        )

    def _found(self, name: str, names: Collection[str]) -> Found:
        kind, names = KINDS[name], [n for n in names if n not in self._ignored]
        needed = kind.needed
        if self._is_pair:  # its label, if mapped, tells which rows are pairs
            needed = dict.fromkeys((*kind.pair, *({kind.label} & self._fields.keys())), ())
        found: dict[str, str] = {}
        for ours, choices in (*needed.items(), *kind.optional.items(), *kind.aside.items()):
            wanted = self._choices(ours, choices)
            there = [column for column in wanted if column in names]
            if there:
                found[ours] = there[0]
            elif ours in needed:
                raise RowFault(
                    f"no field {' or '.join(map(repr, wanted))}; there are"
                    f" {listed(sorted(map(str, names)))}; name it with data.fields, e.g."
                    f" data.fields={{{ours}: NAME}}"
                )
        # who names a column for the id does not want another one
        ids = tuple(column for column in self._choices("id", kind.ids) if column in names)
        read = {*found.values(), *ids}
        signals = (
            () if kind.holds in ("function", "text") else sorted(SIGNALS.keys() & set(names) - read)
        )
        needs, may, beside = (
            {ours: found[ours] for ours in fields if ours in found}
            for fields in (needed, kind.optional, kind.aside)
        )
        splits = tuple(column for column in _SPLITS if column in names and column not in read)
        return Found(name, needs, may, ids, beside, tuple(signals), splits)

    def _choices(self, ours: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        return (self._fields[ours],) if ours in self._fields else choices


def _refuse_other_fields(fields: Mapping[str, str], kinds: list[str]) -> None:
    """A mapped field that no kind has is a typing mistake."""
    if any(fields.keys() <= set(KINDS[kind].fields) for kind in kinds):
        return
    error = MappingError if kinds == [FUNCTION] else DataError
    allowed = "; ".join(f"{kind} has {list(KINDS[kind].fields)}" for kind in kinds)
    raise error(f"data.fields: {sorted(fields)} are not fields of one kind; allowed: {allowed}")


def _is_pair(fields: Mapping[str, str]) -> bool:
    """Whether a row is two records, a function before its fix and after it."""
    kind = KINDS[FUNCTION]
    given = [name for name in kind.pair if name in fields]
    if not given:
        return False
    if len(given) == 1:
        raise MappingError(
            f"data.fields maps {given[0]!r} alone; a pair needs both {' and '.join(kind.pair)}"
        )
    if "code" in fields:  # target may be there: it tells the functions that no fix changed
        raise MappingError(
            "data.fields maps ['code'] beside before and after; a row is a function or a pair"
        )
    if fields["before"] == fields["after"]:
        raise MappingError(f"data.fields: before and after are both {fields['before']!r}")
    return True
