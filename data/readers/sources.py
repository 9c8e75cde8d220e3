"""Which file or folder holds a split, what is in it, and its digest."""

import hashlib
import os
import re
from pathlib import Path

from data.config import DataConfig
from data.errors import DataError
from data.readers.columns import FOLDER_LABELS
from data.readers.folders import label_folders
from data.readers.reading import ReadFacts, Reading, listed
from data.readers.streams import decompressed, is_tar, is_zip
from data.readers.tables import is_saved_dataset

FORMATS = ("jsonl", "json", "csv", "parquet")
_COMPRESSIONS = ("", ".gz", ".xz", ".zst", ".bz2")
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".zip")
_NAME = re.compile(rf"\.({'|'.join(FORMATS)})(\.(gz|xz|zst|bz2))?$", re.IGNORECASE)
STEMS = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
"""What a split is called, Hugging Face's name last."""


def named_format(name: str) -> str | None:
    """The format a file's name promises."""
    found = _NAME.search(name)
    return found.group(1).lower() if found else None


def is_split_file(name: str, split: str) -> bool:
    """Whether a file or member is called <split>.<a format>, compressed or not."""
    return any(
        name.startswith(f"{stem}.") and _NAME.fullmatch(name[len(stem) :]) is not None
        for stem in STEMS.get(split, (split,))
    )


def split_path(config: DataConfig, split: str) -> Path:
    """The file or folder that holds a split: its own key, or the one found under data.path.

    Raises:
        DataError: Nothing there, or several; the message lists what was looked for.
    """
    explicit: str | None = getattr(config, split)
    if explicit is not None:
        return _existing(Path(explicit), f"data.{split}", config)
    if config.path is None:
        raise DataError(f"data.{split} is not set and there is no data.path; set one of the two")
    root = _existing(Path(config.path), "data.path", config)
    if root.is_dir():
        return _below(root, split, config)
    if not _is_archive(root, config):
        raise DataError(
            f"data.path: {root} is one file and no archive of train, valid and test; name the"
            " files by data.train, data.valid and data.test"
        )
    return root


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def is_class_folder(folder: Path, config: DataConfig) -> bool:
    """Whether the folders directly below are labels."""
    labels = config.labels or FOLDER_LABELS
    found = label_folders(folder)
    return bool(found) and set(found) <= labels.keys()


def _existing(path: Path, key: str, config: DataConfig) -> Path:
    if not path.exists():
        raise DataError(f"{key}: {path} does not exist (resolved: {path.resolve()})")
    if path.is_dir():
        takes_folders = key == "data.path" or config.format == "folder"
        if not takes_folders and not is_saved_dataset(path) and not is_class_folder(path, config):
            raise DataError(
                f"{key}: {path} is a folder, but no saved dataset and no folder of label folders;"
                " name the file, or set data.path to the folder"
            )
    elif not path.is_file():
        raise DataError(f"{key}: {path} must be a regular file, because it is read several times")
    return path


def _below(root: Path, split: str, config: DataConfig) -> Path:
    """The one thing under a folder that holds a split."""
    stems = STEMS.get(split, (split,))
    folders = [root / name for name in stems]
    if config.format == "folder":
        return _split_folder(root, split)
    found: list[Path] = [folder for folder in folders if is_saved_dataset(folder)]
    if config.format == "auto" and folders[0].is_dir() and is_class_folder(folders[0], config):
        found.append(folders[0])
    if config.format != "datasets":
        names = [f"{s}.{kind}{end}" for s in stems for kind in FORMATS for end in _COMPRESSIONS]
        names += [stem + end for stem in stems for end in _ARCHIVES]
        files = [root / name for name in names if (root / name).is_file()]
        # an explicit format decides among several
        found += [file for file in files if named_format(file.name) == config.format] or files
    if len(found) == 1:
        return found[0]
    there = [path.name for path in found]
    state = f"found {len(found)}: {there}" if found else f"found 0 among {listed(_entries(root))}"
    raise DataError(f"{root}: expected exactly one of {_looked_for(split, config)}; {state}")


def _looked_for(split: str, config: DataConfig) -> str:
    if config.format == "datasets":
        return f"a saved dataset {split}/"
    labels = "|".join(config.labels or FOLDER_LABELS)
    return (
        f"{split}.jsonl, .json, .csv, .parquet (or with .gz, .xz, .zst, .bz2), {split}.tar, .zip, a"
        f" saved dataset {split}/ or folders {split}/{labels}/"
    )


def _entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _split_folder(root: Path, split: str) -> Path:
    if not (root / split).is_dir():
        raise DataError(
            f"{root}: data.format=folder needs {split}/<label>/.../file; the folder has"
            f" {listed(_entries(root))}"
        )
    return root / split


def _is_archive(path: Path, config: DataConfig) -> bool:
    reading = Reading(path.name, config, ReadFacts())
    with path.open("rb") as stream:
        return is_zip(stream) or is_tar(decompressed(stream, reading))
