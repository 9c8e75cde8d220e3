"""Which column of a file is which field of ours, and what its labels mean."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from data.config import DataConfig
from data.errors import DataError, MappingError
from data.kinds import PAIR_FIELDS, RECORD_FIELDS
from data.readers.reading import listed

OTHER_ID = "idx"  # what CodeXGLUE and its descendants call the id
TEXT_FIELDS = RECORD_FIELDS[3:]  # after code, target and id, in the order of CodeSample
FOLDER_LABELS = {"vulnerable": 1, "safe": 0}


class WantedColumns(Protocol):
    """What a reader of rows asks of the columns it looks for."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that must be there and hold text, but for the target."""

    @property
    def known(self) -> set[str]:
        """Every column that is read."""

    @property
    def target(self) -> str | None:
        """The column of the label, if there is one."""

    @property
    def labels(self) -> Mapping[str, int]:
        """The file's label -> ours."""

    def missing(self, names: Collection[str]) -> str:
        """What a message says about columns that are not among the names; empty where all are."""


def refuse_missing(columns: WantedColumns, names: Collection[str], where: str) -> None:
    """For formats whose columns are those of the whole file.

    Raises:
        DataError: Beginning with `where`.
    """
    if fault := columns.missing(names):
        raise DataError(where + fault)


@dataclass(frozen=True)
class Columns:
    """The file's names of our fields.

    Attributes:
        code, target: None where a row is a pair.
        pair: The columns before and after a fix; None where a row is one function.
        ids: Where the id is looked for, in this order.
        texts: The column of each of TEXT_FIELDS.
        labels: The file's label, as text, -> 0 or 1; empty where labels are the numbers 0 and 1.
    """

    code: str | None
    target: str | None
    pair: tuple[str, str] | None
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: Mapping[str, int]

    @classmethod
    def of(cls, config: DataConfig) -> "Columns":
        """Names from data.fields, our own elsewhere.

        Raises:
            DataError: The mapping names a field we do not have, or half a pair; a label other than
                0 and 1.
        """
        fields, allowed = config.fields, (*RECORD_FIELDS, *PAIR_FIELDS)
        unknown = fields.keys() - set(allowed)
        if unknown:
            raise MappingError(
                f"data.fields: {sorted(unknown)} are not fields of ours; allowed: {list(allowed)}"
            )
        return cls(
            code=None if "before" in fields else fields.get("code", "code"),
            target=None if "before" in fields else fields.get("target", "target"),
            pair=_pair(fields),
            # who names a column for the id does not want another one
            ids=(fields["id"],) if "id" in fields else ("id", OTHER_ID),
            texts=tuple(fields.get(name, name) for name in TEXT_FIELDS),
            labels=_labels(config),
        )

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that every record needs."""
        return self.pair or tuple(name for name in (self.code, self.target) if name)

    @property
    def known(self) -> set[str]:
        """Every column that is read."""
        return {*self.needed, *self.ids, *self.texts}

    def missing(self, names: Collection[str]) -> str:
        """What a message says about columns that are not among the names; empty where all are."""
        for name in self.needed:
            if name not in names:
                ours = self._ours(name)
                return (
                    f"no field {name!r}; there are {listed(sorted(map(str, names)))}; name it with"
                    f" data.fields, e.g. data.fields={{{ours}: NAME}}"
                )
        return ""

    def _ours(self, name: str) -> str:
        if self.pair:
            return PAIR_FIELDS[self.pair.index(name)]
        return "code" if name == self.code else "target"


def _pair(fields: Mapping[str, str]) -> tuple[str, str] | None:
    given = [name for name in PAIR_FIELDS if name in fields]
    if not given:
        return None
    if len(given) == 1:
        raise MappingError(
            f"data.fields maps {given[0]!r} alone; a pair needs both {' and '.join(PAIR_FIELDS)}"
        )
    both = [name for name in ("code", "target") if name in fields]
    if both:
        raise MappingError(
            f"data.fields maps {both} beside before and after; a row is a function or a pair"
        )
    if fields["before"] == fields["after"]:
        raise MappingError(f"data.fields: before and after are both {fields['before']!r}")
    return fields["before"], fields["after"]


def _labels(config: DataConfig) -> Mapping[str, int]:
    wrong = {label: ours for label, ours in config.labels.items() if ours not in (0, 1)}
    if wrong:
        raise MappingError(f"data.labels: {wrong} must become 0 (not vulnerable) or 1 (vulnerable)")
    return config.labels
