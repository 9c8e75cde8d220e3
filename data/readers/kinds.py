"""Which columns of a file are the fields of a kind, and which kind a file holds."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from data.config import DataConfig
from data.errors import DataError
from data.kinds import KINDS, PAIR_FIELDS
from data.readers.reading import listed


@dataclass
class LanguageColumns:
    """The columns of one kind in a file, known once the file's names are.

    Attributes:
        kind: A name in KINDS.
        fields: data.fields.
        found: Our field -> the file's column, of the names looked at last.
    """

    kind: str
    fields: Mapping[str, str]
    found: dict[str, str] = field(default_factory=dict)
    target: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns of text that must be there."""
        kind = KINDS[self.kind]
        return () if kind.holds == "messages" else tuple(self.found[n] for n in kind.needed)

    @property
    def known(self) -> set[str]:
        """Every column that is read."""
        return set(self.found.values())

    def missing(self, names: Collection[str]) -> str:
        """Look for the columns among names; what a message says where one is not there."""
        kind, self.found = KINDS[self.kind], {}
        for name, choices in ({**kind.needed, **kind.optional, "id": ("id",)}).items():
            wanted = (self.fields[name],) if name in self.fields else choices
            there = [column for column in wanted if column in names]
            if there:
                self.found[name] = there[0]
            elif name in kind.needed:
                return (
                    f"no field {' or '.join(map(repr, wanted))}; there are"
                    f" {listed(sorted(map(str, names)))}; name it with data.fields, e.g."
                    f" data.fields={{{name}: NAME}}"
                )
        return ""


@dataclass
class AnyColumns:
    """What reads a file's first row, whatever its columns are."""

    needed: tuple[str, ...] = ()
    known: set[str] = field(default_factory=set)
    target: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)

    def missing(self, names: Collection[str]) -> str:
        """Take them all."""
        self.known = set(names)
        return ""


def refuse_other_fields(config: DataConfig) -> None:
    """A mapping of a field that the kind does not have is a slip of the pen.

    Raises:
        DataError: Naming it and what the kind has.
    """
    kinds = list(KINDS) if config.records == "auto" else [config.records]
    if any(config.fields.keys() <= set(KINDS[kind].fields) for kind in kinds):
        return
    allowed = "; ".join(f"{kind} has {list(KINDS[kind].fields)}" for kind in kinds)
    raise DataError(f"data.fields: {sorted(config.fields)} are not fields of one kind: {allowed}")


def kind_of(names: Collection[str], config: DataConfig, where: str) -> str:
    """The kind of a file from the fields of its first row.

    Raises:
        DataError: None fits.
    """
    for name, kind in KINDS.items():
        if not config.fields.keys() <= set(kind.fields):
            continue
        is_pair = kind.holds == "function" and set(PAIR_FIELDS) <= config.fields.keys()
        if is_pair or not LanguageColumns(name, config.fields).missing(names):
            return name
    kinds = "; ".join(f"{name}: {', '.join(kind.needed)}" for name, kind in KINDS.items())
    raise DataError(
        f"{where}: the fields {listed(sorted(map(str, names)))} are those of no kind of language"
        f" record ({kinds}); set data.records and name them with data.fields"
    )
