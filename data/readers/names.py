"""What the names of files say: their format, the split they are called after, their shard."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""What each split is called, in any case; rows, archives and folders also behind a prefix."""
_COMPRESSION = r"(\.(gz|xz|zst|bz2))?$"
_ROWS = re.compile(rf"\.(jsonl|json|csv|parquet){_COMPRESSION}", re.IGNORECASE)
_TEXT = re.compile(rf"\.(txt|md){_COMPRESSION}", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(tar|tgz|tar\.(gz|xz|zst|bz2)|zip)$", re.IGNORECASE)
_NOT_READ = re.compile(  # data, but of a format that has no reader
    r"\.(tsv|xlsx?|pkl|pickle|arrow|feather|orc|avro|h5|hdf5|npz?|7z|rar)$", re.IGNORECASE
)
_ABOUT = re.compile(
    r"(readme|licen[sc]e|changelog|citation)\b|(dataset_(dict|infos?)|state)\.json$", re.IGNORECASE
)
# train-00000-of-00002, as hubs write it, older ones with a digest; train_1
_SHARD = re.compile(r"[-_.](\d+)(?:[-_]of[-_](\d+))?(?:-[0-9a-f]{8,})?$", re.IGNORECASE)
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class Name:
    """What the name of a file, member or folder says.

    Attributes:
        split: The split that it is called after; "" where it is none.
        is_plain: Nothing stands before the split's name.
        whole: The name without the number of a shard: shards of one file have it in common.
        shard, num_shards: The shard's number as written, and how many there are, if known.
    """

    split: str
    is_plain: bool
    whole: str
    shard: str = ""
    num_shards: int = 0


def parsed(name: str, *, is_folder: bool = False) -> Name:
    """Take the name of a file or folder apart."""
    patterns = () if is_folder else (_ROWS, _TEXT, _ARCHIVE)
    ending = next(filter(None, (pattern.search(name) for pattern in patterns)), None)
    if name.startswith(".") or (ending is None and not is_folder):
        return Name("", False, name)
    stem, suffix = (name[: ending.start()], ending.group()) if ending else (name, "")
    is_one_text = is_text(name) and not is_folder  # a title is free: how_to_train.txt
    found = None if is_folder or is_one_text else _SHARD.search(stem)
    stem = stem[: found.start()] if found else stem
    last = stem.lower() if is_one_text else re.split(r"[-_.]", stem)[-1].lower()
    split = next((split for split, names in SPLITS.items() if last in names), "")
    is_plain, whole = stem.lower() == last, f"{stem}{'-#' if found else ''}{suffix}"
    return (
        Name(split, is_plain, whole, found[1], int(found[2] or 0))
        if found
        else Name(split, is_plain, whole)
    )


def seems(name: str, split: str) -> bool:
    """Whether the name of a split is a word of a name."""
    return bool(set(re.split(r"[^a-z]+", name.lower())) & set(SPLITS[split]))


def named_format(name: str) -> str | None:
    """The format of rows that a file's name promises."""
    found = _ROWS.search(name)
    return found.group(1).lower() if found else None


def is_text(name: str) -> bool:
    """Whether a file is one document by its name."""
    return _TEXT.search(name) is not None


def is_archive(name: str) -> bool:
    """Whether a file's name promises an archive."""
    return _ARCHIVE.search(name) is not None


def is_readable(name: str, texts: bool) -> bool:
    """Whether a file's name promises records, in rows or, if texts are read, as one text."""
    is_hidden = name.rpartition("/")[2].startswith(".")
    return not is_hidden and (named_format(name) is not None or (texts and is_text(name)))


def is_data(name: str, texts: bool) -> bool:
    """Whether a file seems to hold records, also in a format that is not read."""
    is_known = is_readable(name, texts) or is_archive(name) or _NOT_READ.search(name) is not None
    return is_known and not is_about(name)


def is_about(name: str) -> bool:
    """Whether a file tells about data, as a README does."""
    return _ABOUT.match(name) is not None


def is_called(name: str, split: str, texts: bool) -> bool:
    """Whether a member of an archive is called after a split, or is a shard of one that is."""
    base = name.rpartition("/")[2]
    return is_readable(base, texts) and parsed(base).split == split


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """By name, numbers within names by value."""

    def key(path: Path) -> list[str | int]:
        parts = _DIGITS.split(path.as_posix())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)]

    return sorted(paths, key=key)


def told_apart(paths: Iterable[Path]) -> dict[Path, str]:
    """Names of files that share theirs with others: with the folders in which they differ."""
    longer: dict[Path, str] = {}
    by_name: dict[str, set[Path]] = {}
    for path in paths:
        by_name.setdefault(path.name, set()).add(path)
    for same in by_name.values():
        for path in same if len(same) > 1 else ():
            others = [each.parts for each in same if each != path]
            size = 2
            while any(parts[-size:] == path.parts[-size:] for parts in others):
                size += 1
            longer[path] = "/".join(path.parts[-size:])
    return longer
