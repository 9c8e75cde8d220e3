"""Source folders: <split>/<label>/.../file, one function a file, on disk or inside an archive."""

import io
import os
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data.errors import DataError
from data.kinds import FUNCTION
from data.readers.archives import Member
from data.readers.columns import Columns, folder_labels
from data.readers.formats import MAX_LINE_BYTES
from data.readers.labels import class_name
from data.readers.names import is_about, is_readable, named_format, natural_order, parsed
from data.readers.patterns import file_rows
from data.readers.reading import Reading, listed, shown
from data.readers.rows import Record, row_records
from data.records import CodeSample


def folder_samples(folder: Path, reading: Reading) -> Iterator[Record]:
    """Functions below a split's folder, in the order of their names.

    Args:
        folder: Holds one folder for each label.
        reading: Names it; its config maps labels.

    Raises:
        DataError: An unknown label, a link that leaves the folder, a path that is not a file.
    """

    def files() -> Iterator[tuple[tuple[str, ...], Member]]:
        for path in files_below(folder, folder.resolve()):
            parts = path.relative_to(folder).parts
            yield parts, Member("/".join(parts), partial(_opened, path))

    yield from _samples(files(), f"{reading.name}/", reading)


def member_samples(members: Iterable[Member], split: str, reading: Reading) -> Iterator[Record]:
    """Functions of an archive's members .../<split>/<label>/.../file, in the archive's order."""

    has_pattern = reading.config.path_pattern is not None or reading.config.text_pattern is not None

    def files() -> Iterator[tuple[tuple[str, ...], Member]]:
        for member in members:
            parts = PurePosixPath(member.name).parts
            splits = [parsed(part, is_folder=True).split for part in parts[:-1]]
            if split in splits:
                yield parts[splits.index(split) + 1 :], member
            elif has_pattern and not any(splits):
                yield parts, member

    yield from _samples(files(), f"{reading.name}::", reading)


def _samples(
    files: Iterable[tuple[tuple[str, ...], Member]], prefix: str, reading: Reading
) -> Iterator[Record]:
    """Functions of files whose first part is their label, the prefix of their origins given.

    With data.path_pattern or data.text_pattern these say where the fields are.
    """
    config = reading.config
    if config.path_pattern is not None or config.text_pattern is not None:
        rows = file_rows((file for _, file in files), prefix, reading)
        yield from row_records(rows, Columns(config, FUNCTION), reading)
        return
    labels, stray = folder_labels(reading.config), list[str]()
    if reading.config.target != "label":
        raise DataError(
            f"{reading.name}: data.target={reading.config.target} reads a field, which files have"
            " not; call the folders after the weaknesses and set data.labels=auto"
        )
    for parts, file in files:
        if any(part.startswith(".") for part in parts) or len(parts) == 1:
            stray.append(file.name)
            continue
        origin = shown(f"{prefix}{file.name}")
        if labels and parts[0] not in labels:
            raise DataError(
                f"{origin}: its folder {parts[0]!r} is not a known label; data.labels has"
                f" {dict(labels)}: add it, set data.labels=auto, or move the folder"
            )
        with file.open() as stream:
            raw = stream.read(MAX_LINE_BYTES + 1)
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(f"{origin}: above {MAX_LINE_BYTES} bytes, too long to read; remove it")
        code = reading.whole_text(raw, origin)
        if code is not None:
            name = class_name(parts[0], labels, reading)
            target = reading.facts.labels.number((name,), origin)
            yield CodeSample(id=origin, code=code, target=target, origin=origin)
    if stray:
        reading.facts.warn(
            f"{reading.name}: ignored files, hidden or in no label folder: {listed(stray)}"
        )


def _opened(path: Path) -> io.BufferedReader:
    if not stat.S_ISREG(path.stat().st_mode):  # reading a fifo would wait for ever
        raise DataError(f"{shown(str(path))}: a device, fifo or socket, not a function; remove it")
    return path.open("rb")


def refuse_irregular(path: Path, where: str) -> None:
    """Raises DataError if a path is not a regular file; reading a fifo would never end."""
    if not path.exists():
        raise DataError(f"{where} does not exist (resolved: {path.resolve()})")
    if not path.is_file():
        raise DataError(f"{where} must be a regular file, because it is read several times")


def label_folders(folder: Path) -> list[str]:
    """Names of the folders directly below one, without hidden ones."""
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[:1] != "."
    )


def record_files(folder: Path, *, texts: bool) -> list[Path]:
    """Files below a folder whose names promise records, in natural order, hidden ones left out.

    Raises:
        DataError: There are none, or a link leaves the folder.
    """
    every = list(files_below(folder, folder.resolve()))
    files = [
        path
        for path in every
        if is_readable(path.name, texts)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if any(named_format(path.name) for path in files):  # a page about the rows is not one of them
        files = [path for path in files if not is_about(path.name)]
    if not files:
        raise DataError(
            f"{folder}: no .jsonl, .json, .csv, .parquet{', .txt or .md' if texts else ''} in this"
            f" folder; it has {listed(path.name for path in every)}"
        )
    return natural_order(files)


def files_below(folder: Path, root: Path) -> Iterator[Path]:
    """All files below, sorted, links checked; one folder at a time in memory."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_symlink():
            real = path.resolve()
            if not real.is_relative_to(root):
                raise DataError(f"{path}: a link that leaves {root}; copy the file instead")
            if not real.is_file():
                raise DataError(f"{path}: a link to {real}, which is not a file; remove it")
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(path, root)
        else:
            yield path
