"""Which files hold a split: named by its key or found below data.path; and their digests."""

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.errors import DataError
from data.readers.archives import opened
from data.readers.columns import FOLDER_LABELS
from data.readers.folders import files_below, label_folders
from data.readers.reading import ReadFacts, Reading, listed
from data.readers.tables import is_saved_dataset

SPLITS = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
"""What a file or folder of each split is called."""
_COMPRESSION = r"(\.(gz|xz|zst|bz2))?$"
_ROWS = re.compile(rf"\.(jsonl|json|csv|parquet){_COMPRESSION}", re.IGNORECASE)
_TEXT = re.compile(rf"\.(txt|md){_COMPRESSION}", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(tar|tgz|tar\.(gz|xz|zst|bz2)|zip)$", re.IGNORECASE)
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class Layout:
    """A way to store a split below a folder.

    Attributes:
        called: For messages; {split} and {labels} are filled in.
        fits: Whether a path is stored so.
        format: The data.format it has; of files, their names say it.
        files: What is read of it, in order.
        functions, language: Which tasks read it.
    """

    called: str
    fits: Callable[[Path, DataConfig], bool]
    format: str = ""
    files: Callable[[Path], list[Path]] = lambda path: [path]
    functions: bool = True
    language: bool = True


def locate(config: DataConfig, split: str, *, language: bool = False) -> list[Path]:
    """The files that hold a split, in the order in which they are read.

    Args:
        config: A split's own key, else data.path: a folder in which one of LAYOUTS is called after
            the split, or an archive with a member called so.
        split: "train", "valid" or "test".
        language: Conversations and documents: they may lack other splits than train.

    Returns:
        One path for functions; none for a split that language records lack.

    Raises:
        DataError: Nothing there, or several things hold the split; says what was looked for.
    """
    explicit: str | None = getattr(config, split)
    if explicit is not None:
        return named_files(Path(explicit), f"data.{split}", config, language=language)
    may_lack = language and split != "train"
    if config.path is None:
        if may_lack:
            return []
        raise DataError(f"data.{split} is not set and there is no data.path; set one of the two")
    root = Path(config.path)
    if root.is_dir():
        return _below(root, split, config, language)
    refuse_irregular(root, f"data.path: {root}")
    with root.open("rb") as raw:
        is_archive = opened(raw, Reading(root.name, config, ReadFacts()))[1] is not None
    if not is_archive:
        raise DataError(
            f"data.path: {root} is one file and no archive of train, valid and test; name the"
            " files by data.train, data.valid and data.test"
        )
    is_own = partial(is_called, split=split, texts=language)
    return [] if may_lack and not any_member(root, config, is_own) else [root]


def named_files(path: Path, key: str, config: DataConfig, *, language: bool) -> list[Path]:
    """What a key names: a file or a folder; for language also the files that a glob matches.

    Args:
        path: It.
        key: What named it, for messages.
        config: format and labels.
        language: Conversations and documents.

    Raises:
        DataError: It does not exist, or no layout fits it.
    """
    if path.is_dir():
        if layout := _layout(path, config, language):
            return layout.files(path)
        raise DataError(
            f"{key}: {path} is a folder, but no saved dataset and no folder of label folders;"
            " name the file, or set data.path to the folder"
        )
    if not language or path.exists() or not glob.has_magic(str(path)):
        refuse_irregular(path, f"{key}: {path}")
        return [path]
    found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = _natural_order(file for file in found if file.is_file())
    if not files:
        folder = next(each for each in path.parents if not glob.has_magic(str(each)))
        there = listed(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "nothing"
        raise DataError(f"{key}: {path} matches no file; {folder.resolve()} has {there}")
    return files


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


def refuse_irregular(path: Path, where: str) -> None:
    """Raises DataError if a path is not a regular file; reading a fifo would never end."""
    if not path.exists():
        raise DataError(f"{where} does not exist (resolved: {path.resolve()})")
    if not path.is_file():
        raise DataError(f"{where} must be a regular file, because it is read several times")


def named_format(name: str) -> str | None:
    """The format of rows that a file's name promises."""
    found = _ROWS.search(name)
    return found.group(1).lower() if found else None


def is_text(name: str) -> bool:
    """Whether a file is one document by its name."""
    return _TEXT.search(name) is not None


def is_readable(name: str) -> bool:
    """Whether a file's name promises records."""
    return named_format(name) is not None or is_text(name)


def is_called(name: str, split: str, texts: bool) -> bool:
    """Whether a file or member is called <split>.<format>, compressed or not."""
    base = name.rpartition("/")[2]
    ending = _ROWS.search(base) or (_TEXT.search(base) if texts else None)
    return ending is not None and base[: ending.start()] in SPLITS.get(split, (split,))


def is_called_a_split(name: str) -> bool:
    """Whether a file or member is called after any split, texts included."""
    return any(is_called(name, split, texts=True) for split in SPLITS)


def any_member(path: Path, config: DataConfig, test: Callable[[str], bool]) -> bool:
    """Whether a name in an archive passes a test; the whole archive is checked for its names."""
    with path.open("rb") as raw:
        _, members = opened(raw, Reading(path.name, config, ReadFacts()))
        return True in [test(member.name) for member in members or ()]


def file_digest(path: Path, algorithm: Callable[..., Any] = hashlib.sha256) -> str:
    """Digest of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def source_digest(path: Path) -> str:
    """sha256 of a file, or of a folder: of the sorted names below it and their contents."""
    if not path.is_dir():
        return file_digest(path)
    whole = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file():  # a fifo, which no reader accepts, would wait for ever
                line = f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n"
                whole.update(line.encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _below(root: Path, split: str, config: DataConfig, language: bool) -> list[Path]:
    """The one thing under a folder that holds a split."""
    entries = sorted(root.iterdir())
    own = [entry for entry in entries if _stem(entry) in SPLITS.get(split, (split,))]
    found = {entry: layout for entry in own if (layout := _layout(entry, config, language))}
    formats = {entry: named_format(entry.name) or found[entry].format for entry in found}
    # a stated format decides among several
    found = {entry: found[entry] for entry in found if formats[entry] == config.format} or found
    if len(found) == 1:
        return [file for entry, layout in found.items() for file in layout.files(entry)]
    if not found and language and split != "train":
        return []
    names = "|".join(config.labels or FOLDER_LABELS)
    called = [each.called.format(split=split, labels=names) for each in _layouts(language)]
    own_names, every_name = ([entry.name for entry in each] for each in (found, entries))
    state = f": {own_names}" if found else f" among {listed(every_name)}"
    stated = "" if config.format == "auto" else f" under data.format={config.format}"
    remedy = f"; for all files of a folder set data.{split}={root}" if language else ""
    raise DataError(
        f"{root}: expected exactly one of {'; '.join(called)}; found {len(found)}{stated}{state}"
        f"{remedy}"
    )


def _stem(path: Path) -> str:
    endings = (pattern.search(path.name) for pattern in (_ROWS, _TEXT, _ARCHIVE))
    ending = None if path.is_dir() else next(filter(None, endings), None)
    return path.name[: ending.start()] if ending else path.name


def _layout(path: Path, config: DataConfig, language: bool) -> Layout | None:
    return next((each for each in _layouts(language) if each.fits(path, config)), None)


def _layouts(language: bool) -> list[Layout]:
    return [each for each in LAYOUTS if (each.language if language else each.functions)]


def _is_file(pattern: re.Pattern[str]) -> Callable[[Path, DataConfig], bool]:
    def fits(path: Path, _: DataConfig) -> bool:
        return path.is_file() and pattern.search(path.name) is not None

    return fits


def _is_label_folder(path: Path, config: DataConfig) -> bool:
    """Whether the folders directly below are labels; data.format=folder says that they are."""
    if config.format == "folder" or not path.is_dir():
        return path.is_dir()
    found = label_folders(path)
    return bool(found) and set(found) <= (config.labels or FOLDER_LABELS).keys()


def _folder_files(folder: Path) -> list[Path]:
    """Files below a folder whose names promise records, in natural order, hidden ones left out.

    Raises:
        DataError: There are none, or a link leaves the folder.
    """
    every = list(files_below(folder, folder.resolve()))
    files = [
        path
        for path in every
        if is_readable(path.name)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(
            f"{folder}: no .jsonl, .json, .csv, .parquet, .txt or .md in this folder; it has"
            f" {listed(path.name for path in every)}"
        )
    return _natural_order(files)


def _natural_order(paths: Iterable[Path]) -> list[Path]:
    """By name, numbers within names by value."""

    def key(path: Path) -> list[str | int]:
        parts = _DIGITS.split(path.as_posix())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)]

    return sorted(paths, key=key)


# The first that fits a path is its layout.
LAYOUTS = (
    Layout("{split}.jsonl, .json, .csv, .parquet (or with .gz, .xz, .zst, .bz2)", _is_file(_ROWS)),
    Layout("{split}.txt, .md", _is_file(_TEXT), functions=False),
    Layout("{split}.tar, .zip", _is_file(_ARCHIVE)),
    Layout(
        "a saved dataset {split}/",
        lambda path, config: config.format != "folder" and is_saved_dataset(path),
        "datasets",
    ),
    Layout(
        "folders {split}/<label>/ (labels: {labels})", _is_label_folder, "folder", language=False
    ),
    Layout(
        "a folder {split}/ of files",
        lambda path, _: path.is_dir(),
        files=_folder_files,
        functions=False,
    ),
)
