"""Which files hold a split of language records: one file, a glob, a folder, or under data.path."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from data.config import DataConfig
from data.errors import DataError
from data.readers.folders import files_below
from data.readers.read import opened
from data.readers.reading import ReadFacts, Reading, listed
from data.readers.sources import STEMS
from data.readers.tables import is_saved_dataset

_TEXT = r"txt|md"
_NAME = re.compile(rf"\.(jsonl|json|csv|parquet|{_TEXT})(\.(gz|xz|zst|bz2))?$", re.IGNORECASE)
_TEXT_NAME = re.compile(rf"\.({_TEXT})(\.(gz|xz|zst|bz2))?$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(tar|tgz|tar\.(gz|xz|zst|bz2)|zip)$", re.IGNORECASE)
_DIGITS = re.compile(r"([0-9]+)")


def language_paths(config: DataConfig, split: str) -> list[Path]:
    """The files that hold a split, in the order in which they are read.

    A split's own key is a file, a glob or a folder; files of the latter two are in natural order
    (part2 before part10). Below data.path a split is one file, saved dataset or folder of files.

    Returns:
        At least one for train; none for another split that is not given.

    Raises:
        DataError: Nothing where something is named, or several things that hold one split.
    """
    explicit: str | None = getattr(config, split)
    if explicit is not None:
        return named_files(Path(explicit), f"data.{split}")
    if config.path is None:
        if split != "train":
            return []
        raise DataError("data.train is not set and there is no data.path; set one of the two")
    root = Path(config.path)
    if not root.exists():
        raise DataError(f"data.path: {root} does not exist (resolved: {root.resolve()})")
    return _in_archive(root, split, config) if root.is_file() else _below(root, split)


def named_files(path: Path, key: str) -> list[Path]:
    """A file, a saved dataset, the files of a folder or those that a glob matches.

    Args:
        path: Either.
        key: What named it, for messages.

    Raises:
        DataError: There is none.
    """
    if path.is_dir():
        return [path] if is_saved_dataset(path) else folder_files(path)
    if path.is_file():
        return [path]
    if path.exists():
        raise DataError(f"{key}: {path} must be a regular file, because it is read several times")
    pattern = str(path)
    if not glob.has_magic(pattern):
        raise DataError(f"{key}: {path} does not exist (resolved: {path.resolve()})")
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = natural_order(file for file in found if file.is_file())
    if not files:
        folder = path.parent
        while glob.has_magic(str(folder)):
            folder = folder.parent
        there = listed(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "nothing"
        raise DataError(f"{key}: {path} matches no file; {folder.resolve()} has {there}")
    return files


def folder_files(folder: Path) -> list[Path]:
    """Files below a folder whose names promise records, in natural order, hidden ones left out.

    Raises:
        DataError: There are none, or a link leaves the folder.
    """
    every = list(files_below(folder, folder.resolve()))
    visible = [
        path
        for path in every
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    files = [path for path in visible if is_readable(path.name)]
    if not files:
        raise DataError(
            f"{folder}: no .jsonl, .json, .csv, .parquet, .txt or .md in this folder; it has"
            f" {listed(path.name for path in every)}"
        )
    return natural_order(files)


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """By name, numbers within names by value."""

    def key(path: Path) -> list[str | int]:
        parts = _DIGITS.split(path.as_posix())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)]

    return sorted(paths, key=key)


def is_readable(name: str) -> bool:
    """Whether a file's name promises records."""
    return _NAME.search(name) is not None


def is_text(name: str) -> bool:
    """Whether a file is one document by its name."""
    return _TEXT_NAME.search(name) is not None


def files_of_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Split -> the names, of files or members, that are called <split>.<format>."""
    found: dict[str, list[str]] = {}
    for name in names:
        base = name.rpartition("/")[2]
        ending = _NAME.search(base)
        stem = base[: ending.start()] if ending else ""
        for split, stems in STEMS.items():
            if stem in stems:
                found.setdefault(split, []).append(name)
    return found


def member_names(path: Path, config: DataConfig) -> list[str] | None:
    """Names of an archive's regular members; None if the file is not an archive."""
    with path.open("rb") as raw:
        _, members = opened(raw, Reading(path.name, config, ReadFacts()))
        return None if members is None else [member.name for member in members]


def _in_archive(root: Path, split: str, config: DataConfig) -> list[Path]:
    names = member_names(root, config)
    if names is None:
        raise DataError(
            f"data.path: {root} is one file and no archive of train, valid and test; name it by"
            " data.train"
        )
    return [root] if split == "train" or split in files_of_split(names) else []


def _below(root: Path, split: str) -> list[Path]:
    """The one thing under a folder that holds a split, as files."""
    entries = sorted(root.iterdir())
    own = STEMS[split]
    found = [entry for entry in entries if entry.is_dir() and entry.name in own]
    for entry in entries:
        ending = _NAME.search(entry.name) or _ARCHIVE.search(entry.name)
        if entry.is_file() and ending and entry.name[: ending.start()] in own:
            found.append(entry)
    if len(found) == 1:
        return named_files(found[0], "data.path")
    if not found and split != "train":
        return []
    state = f"found {[path.name for path in found]}" if found else "found none"
    raise DataError(
        f"{root}: expected exactly one of {split}.jsonl, .json, .csv, .parquet, .txt, .md"
        f" (compressed or not), {split}.tar, .zip or a folder {split}/; {state} among"
        f" {listed(entry.name for entry in entries)}; for all files of a folder set"
        f" data.{split}={root}"
    )
