"""Source folders: <split>/<label>/.../file, one function a file, on disk or inside an archive."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from data.errors import DataError
from data.readers.archives import Member
from data.readers.columns import FOLDER_LABELS
from data.readers.formats import MAX_LINE_BYTES
from data.readers.reading import Reading, listed, shown
from data.records import CodeSample


def folder_samples(folder: Path, reading: Reading) -> Iterator[CodeSample]:
    """Functions below a split's folder, in the order of their names.

    Args:
        folder: Holds one folder for each label.
        reading: Names it; its config maps labels.

    Raises:
        DataError: An unknown label, a link that leaves the folder, a file that is none.
    """
    labels = _labels(reading)
    stray = []
    for path in files_below(folder, folder.resolve()):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or len(parts) == 1:
            stray.append("/".join(parts))
            continue
        origin = shown(f"{folder.name}/{'/'.join(parts)}")
        target = _target(parts[0], labels, origin)
        yield from _sample(_content(path, origin), target, origin, reading)
    _warn_stray(stray, reading)


def member_samples(members: Iterable[Member], split: str, reading: Reading) -> Iterator[CodeSample]:
    """Functions of an archive's members .../<split>/<label>/.../file, in the archive's order."""
    labels, archive, stray = _labels(reading), reading.name, []
    for member in members:
        parts = PurePosixPath(member.name).parts
        if split not in parts[:-1]:
            continue
        inner = parts[parts.index(split) + 1 :]
        if any(part.startswith(".") for part in inner) or len(inner) == 1:
            stray.append(member.name)
            continue
        origin = shown(f"{archive}::{member.name}")
        target = _target(inner[0], labels, origin)
        with member.open() as stream:
            raw = stream.read(MAX_LINE_BYTES + 1)
        yield from _sample(raw, target, origin, reading)
    _warn_stray(stray, reading)


def label_folders(folder: Path) -> list[str]:
    """Names of the folders directly below one, without hidden ones."""
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[:1] != "."
    )


def _labels(reading: Reading) -> Mapping[str, int]:
    return reading.config.labels or FOLDER_LABELS


def _target(label: str, labels: Mapping[str, int], origin: str) -> int:
    if label not in labels:
        raise DataError(
            f"{origin}: its folder {label!r} is not a known label; data.labels has {dict(labels)}:"
            " add it, or move the folder"
        )
    return labels[label]


def _sample(raw: bytes, target: int, origin: str, reading: Reading) -> Iterator[CodeSample]:
    if len(raw) > MAX_LINE_BYTES:
        raise DataError(f"{origin}: above {MAX_LINE_BYTES} bytes, too long to read; remove it")
    code = reading.whole_text(raw, origin)
    if code is not None:
        yield CodeSample(id=origin, code=code, target=target, origin=origin)


def _content(path: Path, origin: str) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # reading a fifo would wait for ever
        raise DataError(f"{origin}: a device, fifo or socket, not a function; remove it")
    with path.open("rb") as stream:
        return stream.read(MAX_LINE_BYTES + 1)


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


def _warn_stray(stray: list[str], reading: Reading) -> None:
    if stray:
        reading.facts.warn(
            f"{reading.name}: ignored files, hidden or in no label folder: {listed(stray)}"
        )
