"""What all readers share: facts, names of places, tolerated faults, checks of values."""

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

from data.config import DataConfig
from data.errors import DataError, parsing
from data.kinds import SIGNALS
from data.readers.names import SPLITS
from data.text.labels import MetLabels

_SHOWN = 60  # characters of a wrong value quoted in a message
_MAX_IGNORED = 1000  # columns listed as ignored
_LISTED = 160  # characters of names listed in a message
BOM = b"\xef\xbb\xbf"
_EXACT = 2.0**53  # below, a float says which integer it was
_EXAMPLES = 5  # bad rows whose message is kept
# How datasets write that they do not know; as a group, "None" would join all of these functions.
_UNKNOWN = {"", "-", "?", "none", "nan", "null", "na", "n/a", "<na>", "nat", "unknown"}
_LONGEST_UNKNOWN = 16  # with blanks around it
_SUSPECT = {*"-?nNuU<[{( \t\r\n", ""}  # first characters of these and of lists
_ENTRY = r"(?:'[^']*+'|\"[^\"]*+\"|None|nan|null)"
_LIST = re.compile(rf"[\[({{]\s*+(?:{_ENTRY}\s*+,?\s*+)*+[\])}}]")
# A key of a message that seems to say whether it is learned, however it is called.
_FLAG = re.compile(r"(?:^|_)(?:loss|train|learn|mask|weight|supervise)(?:able|ing|e?d|s)?(?:_|$)")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")

_EXPORT = "write each split to a file of its own, e.g."
_PICKLE = f"a pickle, which is never opened; {_EXPORT} train.parquet"
_FOREIGN = {  # first bytes -> what else people have; how it becomes a file that is read
    b"\xff\xfe": "text in UTF-16, as Excel and PowerShell write it; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"\0\0\xfe\xff": "text in UTF-32; save it as UTF-8",
    b"ARROW1\0\0": f"a bare Arrow file; {_EXPORT} train.parquet, or name the folder around it",
    b"\x89HDF\r\n": f"an HDF5 file; {_EXPORT} train.parquet",
    b"\x93NUMPY": f"a numpy array; {_EXPORT} train.jsonl",
    **{bytes((0x80, protocol)): _PICKLE for protocol in (2, 3, 4, 5)},
    b"\xd0\xcf\x11\xe0": f"an Excel file; {_EXPORT} train.csv in UTF-8",
    b"ORC": f"an ORC file; {_EXPORT} train.parquet",
    b"Obj\x01": f"an Avro file; {_EXPORT} train.jsonl",
    b"7z\xbc\xaf": "a 7z archive; make a zip or tar of it",
    b"Rar!": "a rar archive; make a zip or tar of it",
    b"%PDF": "a PDF; take its text out",
    b"version https://git-lfs": "a pointer of Git LFS, not the file; fetch it with git lfs pull",
}
Place = int | str  # a line, a row, an element, or a file of a folder


class RowFault(ValueError):
    """What is wrong with a row; the reader adds the place."""


@dataclass
class ReadFacts:
    """What a reader found and passed over in one split, for data.json and the banner.

    Attributes:
        num_rows: Rows found, whatever became of them.
        num_empty: Functions, texts and records dropped because they, or what is to be answered, are
            blank; a side of a pair counts once.
        num_identical: Pairs dropped because the fix did not change the function.
        num_bad: Rows passed over under data.max_bad_rows.
        bad_examples: The messages of the first of them.
        num_replaced: Lines, files or cells that were not UTF-8 and were repaired on request.
        num_nul: Functions that hold a NUL character, which is kept.
        ignored_fields: Columns that no field of ours is mapped to.
        warnings: Sentences for the user, each once.
        labels: Labels that are not 0 and 1.
    """

    num_rows: int = 0
    num_empty: int = 0
    num_identical: int = 0
    num_bad: int = 0
    bad_examples: list[str] = field(default_factory=list)
    num_replaced: int = 0
    num_nul: int = 0
    ignored_fields: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    labels: MetLabels = field(default_factory=MetLabels, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values for data.json."""
        values = asdict(replace(self, labels=MetLabels()))
        values |= {"ignored_fields": sorted(self.ignored_fields)}
        del values["labels"]
        return {"num_rows": self.num_rows, "num_empty_dropped": values.pop("num_empty")} | values

    def warn(self, sentence: str) -> None:
        """Keep a sentence for the user, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def bad(self, message: str, allowed: int) -> None:
        """Count a row that is passed over.

        Args:
            message: Its place and what is wrong with it.
            allowed: data.max_bad_rows.

        Raises:
            DataError: There are more of them.
        """
        self.num_bad += 1
        if self.num_bad > allowed:
            passed = f"; {allowed} bad rows before it were passed over" if allowed else ""
            raise DataError(message + passed)
        if len(self.bad_examples) < _EXAMPLES:
            self.bad_examples.append(message)


@dataclass
class Reading:
    """One split being read.

    Attributes:
        name: What is read, such as "data.tar::train.jsonl".
        config: Tolerance for bad rows and bad encoding.
        facts: Filled while reading.
        split: Which one.
        unit: Stands between the name and the number of a row: nothing where rows are lines.
        fills_nulls: A key that a nested value does not have is null, as in a table.
    """

    name: str
    config: DataConfig
    facts: ReadFacts
    split: str = ""
    unit: str = ""
    fills_nulls: bool = False

    @cached_property
    def is_binary(self) -> bool:
        """Whether the label says vulnerable or not, as 0 and 1 or by a map to them."""
        labels = self.config.labels
        is_map = isinstance(labels, dict) and set(labels.values()) <= {0, 1}
        return is_map or self.config.target != "label"

    def intact(self) -> AbstractContextManager[None]:
        """Around what a library reads: its faults become a DataError with the rows before them."""
        return parsing(
            lambda: f"{self.name}: the data is damaged or cut off after {self.facts.num_rows} rows",
            DataError,
            "fetch the file again",
        )

    def origin(self, place: Place) -> str:
        """The place of a row; a file of a folder is its own place."""
        return place if isinstance(place, str) else f"{self.name}:{self.unit}{place}"

    def bad(self, place: Place, message: str) -> None:
        """Count a row that cannot be used.

        Raises:
            DataError: There are more of them than data.max_bad_rows.
        """
        self.facts.bad(f"{self.origin(place)}: {message}", self.config.max_bad_rows)

    def bad_line(self, place: Place, message: str) -> None:
        """Count a row that never became columns: as a row, and as a bad one."""
        self.facts.num_rows += 1
        self.bad(place, message)

    def unread(
        self, row: Mapping[str, Any], names: Iterable[str], origin: str, prefix: str = ""
    ) -> None:
        """Note what of a row no field of ours is mapped to.

        Args:
            row: Columns, or keys of a message.
            names: Those that are not read.
            origin: Of the row.
            prefix: Stands before a name.

        Raises:
            DataError: One would change what is learned, whatever data.max_bad_rows says.
        """
        for name in names:
            shown, value = f"{prefix}{name}", row[name]
            if value is None or value in ("", [], {}):
                continue
            is_flag = bool(prefix and _FLAG.search(name)) and isinstance(value, int | float)
            is_signal = name in SIGNALS and value != 1 and (name != "label" or value is False)
            is_signal |= is_flag and value != ("mask" not in name)
            if is_signal and shown not in self.config.ignore_columns:
                advice = SIGNALS.get(name) or (
                    "call it train (1: learned) or masked (1: not)"
                    if is_flag
                    else "map it with data.fields where another name is read"
                )
                raise DataError(
                    f"{origin}: {shown!r} would change what is learned and is not read here;"
                    f" {advice}; data.ignore_columns=[{shown}] passes over it"
                )
            if len(self.facts.ignored_fields) < _MAX_IGNORED:
                self.facts.ignored_fields.add(shown)

    def refuse_held_out(self, row: Mapping[str, Any], columns: Iterable[str], place: Place) -> None:
        """Refuse a row of train whose own column says that it is for validation or test.

        Raises:
            DataError: Whatever data.max_bad_rows says: the row would be learned.
        """
        for column in columns:
            said = str(row[column]).strip().lower()
            if self.split == "train" and said in {*SPLITS["valid"], *SPLITS["test"]}:
                raise DataError(
                    f"{self.origin(place)}: {column!r} says {row[column]!r}, but the file is read"
                    " as train; write each split to a file of its own, or divide the rows anew:"
                    f" data.ignore_columns=[{column}]"
                )

    def keeps(self, code: str) -> bool:
        """Count what is odd about a function; False where it is blank and has to be dropped."""
        if not code or code.isspace():
            self.facts.num_empty += 1
            return False
        if "\0" in code:
            self.facts.num_nul += 1
        return True

    def whole_text(self, raw: bytes, origin: str) -> str | None:
        """A file that is one record: its text; None where it is passed over.

        Raises:
            DataError: It is not text, and the bad rows exceed data.max_bad_rows.
        """
        self.facts.num_rows += 1
        try:
            if known := not_rows(raw[:64]):
                raise RowFault(known)
            text = self.decoded(raw.removeprefix(BOM))
        except RowFault as fault:
            self.bad(origin, str(fault))
            return None
        return text if self.keeps(text) else None

    def decoded(self, raw: bytes) -> str:
        """UTF-8, repaired and counted where the recipe asks for it.

        Raises:
            RowFault: It is not UTF-8 and data.encoding_errors is strict.
        """
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.config.encoding_errors == "strict":
                raise RowFault(
                    f"not UTF-8 at byte {error.start} ({raw[error.start : error.start + 4]!r});"
                    " convert the file to UTF-8, or set data.encoding_errors=replace"
                ) from error
            self.facts.num_replaced += 1
            return raw.decode("utf-8", "replace")


def not_rows(head: bytes) -> str | None:
    """What a file is whose first bytes are known and hold no text in UTF-8; None for others."""
    for magic, meaning in _FOREIGN.items():
        if head.startswith(magic):
            return f"this is {meaning}"
    wide = len(head) >= 8 and (head[:32:2], head[1:32:2])
    if wide and not all(any(half) for half in wide) and any(head[:32]):
        return "this is text in UTF-16 without its mark; save it as UTF-8"
    return None


def shown(name: str) -> str:
    """A file's name as text; bytes that are not UTF-8 are written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def quote(value: object) -> str:
    """A value as a message shows it: shortened, with its type."""
    # repr of a long text would build a second one
    text = repr(value[: _SHOWN + 1] if isinstance(value, str | bytes) else value)
    return f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'} ({type(value).__name__})"


def listed(names: Iterable[str]) -> str:
    """The first names in a message, and how many more there are."""
    every, short, room = list(names), [], _LISTED
    for name in every:
        room -= min(len(name), _SHOWN)
        if room < 0:
            break
        short.append(name if len(name) <= _SHOWN else name[:_SHOWN] + "...")
    more = f" and {len(every) - len(short)} more" if len(every) > len(short) else ""
    return f"{short}{more}"


def refuse(name: str, value: object, allowed: str) -> NoReturn:
    """Raises RowFault: a column's value is not what it must be."""
    raise RowFault(f"{name!r} must be {allowed}, found {quote(value)}")


def checked_text(value: Any, name: str) -> str:
    """A column of text.

    Raises:
        RowFault: It is not text, or holds half of a surrogate pair, which no encoding takes.
    """
    if isinstance(value, list | dict):
        way = "if this is a column, make rows of it: pandas does, by orient='records', lines=True"
        raise RowFault(f"{name!r} must be text, found {quote(value)}; {way}")
    if not isinstance(value, str):
        refuse(name, value, "text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowFault(
                f"{name!r} holds {value[error.start]!r} at character {error.start}, half of a"
                " surrogate pair, which is not text; write the whole character or remove it"
            ) from error
    return value


def plain_text(value: Any, name: str) -> str:
    """A column of text or integers as text, "" where it is unknown; a list becomes "A, B".

    A list is sorted and names each entry once: the same weaknesses are the same text. It may have
    been written as text, as pandas does in CSV: "['CWE-79', 'CWE-89']".

    Raises:
        RowFault: It is none of these.
    """
    if value.__class__ is str:
        if value[:1] not in _SUSPECT and value.isascii():
            return value  # nearly all; a million rows have several each
        if not _LIST.fullmatch(value):
            is_long = len(value) > _LONGEST_UNKNOWN
            is_known = is_long or value.strip().lower() not in _UNKNOWN
            return checked_text(value, name) if is_known else ""
        value = [first or second for first, second in _QUOTED.findall(value)]
    if isinstance(value, list):
        if any(isinstance(entry, list) for entry in value):
            refuse(name, value, "text, an integer, or a list of these")
        each = {plain_text(entry, name) for entry in value} - {""}
        return ", ".join(sorted(each, key=lambda text: (len(text), text)))
    if value is None or value != value:  # pandas writes NaN where a value is missing
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:  # 79 as 79.0
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        refuse(name, value, "text or an integer")
    return str(value)
