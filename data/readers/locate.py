"""Which files hold a split: named by its key or found below data.path."""

import glob
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from data.config import DataConfig, Weighted
from data.errors import DataError
from data.readers.archives import opened
from data.readers.columns import folder_labels
from data.readers.folders import refuse_irregular
from data.readers.layouts import Entry, entries_of, is_one, layout_of, layouts_of
from data.readers.names import (
    SPLITS,
    is_about,
    is_archive,
    is_data,
    is_readable,
    is_text,
    natural_order,
    parsed,
    seems,
)
from data.readers.reading import ReadFacts, Reading, listed

Files = str | Path | Sequence[str | Weighted]


def locate(config: DataConfig, split: str, *, language: bool = False) -> list[Path]:
    """The files that hold a split, in the order in which they are read.

    Args:
        config: A split's own key, else data.path: a folder in which one of LAYOUTS is called after
            the split, an archive with members called so, or what names no splits, which is train.
        split: "train", "valid" or "test".
        language: Conversations and documents, not functions.

    Returns:
        Nothing for a split other than train that is left out.

    Raises:
        DataError: Nothing there, or several things hold the split; says what was looked for.
    """
    explicit = getattr(config, split)
    if explicit is not None:
        return named_files(explicit, f"data.{split}", config, split=split, language=language)
    if config.path is None:
        if split != "train":
            return []
        raise DataError("data.train is not set and there is no data.path; set one of the two")
    roots = _globbed(config.path, "data.path")
    found = [_of_root(root, split, config, language, len(roots) > 1) for root in roots]
    if not any(found) and split == "train":
        raise DataError(f"data.path: {config.path} holds no train; name its files by data.train")
    return [file for files in found for file in files]


def named_files(
    given: Files, key: str, config: DataConfig, *, split: str, language: bool
) -> list[Path]:
    """What a key names: files, globs and folders, several in a list.

    Args:
        given: Its value.
        key: What named it, for messages.
        config: format and labels.
        split: What is taken from a folder that holds several splits.
        language: Conversations and documents, not functions.

    Raises:
        DataError: It does not exist, or no layout fits it.
    """
    files: list[Path] = []
    for path in _globbed(given, key):
        if not path.is_dir():
            refuse_irregular(path, f"{key}: {path}")
            files.append(path)
            continue
        layout = layout_of(path, config, language)
        entries = [] if is_one(path, config) else entries_of(path, config, language)
        if any(entry.name.split == split for entry in entries):
            files += _of_split(entries, split, config, language)
        elif any(entry.path.is_file() for entry in entries):
            names = listed(entry.path.name for entry in entries)
            raise DataError(f"{key}: {path} holds no {split} but {names}; name the file")
        else:
            assert layout is not None  # a folder of files, the last one, fits every folder
            files += layout.files(path)
    return files


def unread(config: DataConfig, used: Iterable[Path], *, language: bool) -> list[str]:
    """Names of data beside the files of the splits that no split reads.

    Args:
        config: Below data.path all data counts, elsewhere what is called after a split.
        used: What locate found for all splits.
        language: Whether .txt and .md are data.
    """
    every = set(used)
    folders = {path.parent for path in every}
    is_folder = isinstance(config.path, str) and Path(config.path).is_dir()
    own = {*folders, Path(str(config.path))} if is_folder else set()
    return [
        entry.name
        for folder in sorted((folders | own) - every)
        for entry in sorted(folder.iterdir())
        if entry not in every and entry.is_file() and is_data(entry.name, language)
        if folder in own or parsed(entry.name).split
    ]


def overlooked(
    config: DataConfig, split: str, used: Iterable[Path], *, language: bool
) -> Path | None:
    """What seems to hold a split that no key names: beside what train is read from, or within it.

    Args:
        config: Of train's key, or else data.path, the files and folders are looked at.
        split: "valid" or "test", without files.
        used: What locate found for the other splits.
        language: Conversations and documents, not functions.
    """
    key = "path" if config.train is None else "train"
    given = _globbed(getattr(config, key), f"data.{key}")
    for path in given if key == "train" else ():
        if _is_within(path, split, config, language):
            return path
    texts = language or any(is_text(path.name) for path in given)
    for folder in sorted({path.parent for path in given}):
        own = [path for path in given if path.parent == folder]
        beside_files = any(path.is_file() for path in own)
        beside_folders = any(path.is_dir() and seems(path.name, "train") for path in own)
        for path in sorted({*folder.iterdir()} - {*used} - {*own}):
            if path.is_dir():
                is_called = beside_folders and seems(path.name, split)
            elif is_text(path.name):  # a title is free: how_to_test.txt
                is_called = beside_files and texts and parsed(path.name).split == split
            else:
                is_called = beside_files and is_data(path.name, texts) and seems(path.name, split)
            if is_called:
                return path
    return None


def _is_within(path: Path, split: str, config: DataConfig, language: bool) -> bool:
    """Whether a folder or an archive of several splits holds this one."""
    if path.is_dir():
        entries = [] if is_one(path, config) else entries_of(path, config, language)
        return {"train", split} <= {entry.name.split for entry in entries}
    return split in archive_splits(path, texts=language, by_folder=config.format == "folder")[0]


def archive_splits(
    path: Path, *, texts: bool, by_folder: bool = False
) -> tuple[dict[str, str], dict[str, str]]:
    """A member for each split that one is called after, and for each that a name only mentions.

    Any other file has none.

    Args:
        path: The whole archive is checked for its names.
        texts: .txt and .md count.
        by_folder: The folders around a member are called so, not the member.
    """
    state = path.stat()
    return _splits_within(path, texts, by_folder, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)  # one split after the other asks
def _splits_within(
    path: Path, texts: bool, by_folder: bool, *_state: int
) -> tuple[dict[str, str], dict[str, str]]:
    called: dict[str, str] = {}
    seeming: dict[str, str] = {}
    with path.open("rb") as raw:
        _, members = opened(raw, Reading(path.name, DataConfig(), ReadFacts()))
        for member in members or ():
            *folders, base = member.name.split("/")
            names = folders if by_folder else [base] if is_readable(base, texts) else []
            splits = {parsed(name, is_folder=by_folder).split for name in names} - {""}
            called |= dict.fromkeys(splits, member.name)
            if not by_folder and not splits and is_data(base, texts):
                seeming |= {split: member.name for split in SPLITS if seems(base, split)}
    return called, seeming


def _globbed(given: Files, key: str) -> list[Path]:
    """The paths that a key names, which exist, with globs expanded."""
    paths: list[Path] = []
    every = [given] if isinstance(given, str | Path) else given
    for path in (Path(each.path if isinstance(each, Weighted) else each) for each in every):
        if path.exists():
            paths.append(path)
        elif glob.has_magic(str(path)):
            paths += _matching(path, key)
        else:
            raise DataError(f"{key}: {path} does not exist (resolved: {path.resolve()})")
    return paths


def _matching(path: Path, key: str) -> list[Path]:
    """The files that a glob matches.

    Raises:
        DataError: There are none, or the glob of a split matches other splits, too.
    """
    found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = natural_order(file for file in found if file.is_file())
    if not files:
        folder = next(each for each in path.parents if not glob.has_magic(str(each)))
        there = listed(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "nothing"
        raise DataError(f"{key}: {path} matches no file; {folder.resolve()} has {there}")
    splits = sorted({parsed(file.name).split for file in files} - {""})
    if key != "data.path" and len(splits) > 1:
        raise DataError(
            f"{key}: {path} matches files of {' and '.join(splits)}:"
            f" {listed(file.name for file in files)}; give it to data.path, or narrow it"
        )
    return files


def _of_root(
    root: Path, split: str, config: DataConfig, language: bool, is_one_of: bool
) -> list[Path]:
    """What one path of data.path has of a split; what names no splits is train."""
    if not root.is_dir():
        refuse_irregular(root, f"data.path: {root}")
        by_folder = config.format == "folder"
        called, seeming = archive_splits(root, texts=language, by_folder=by_folder)
        if called and split in seeming and split not in called:
            raise DataError(
                f"{root.name}::{seeming[split]} seems to hold {split}, but is not called"
                f" {' or '.join(SPLITS[split])}; rename it, or set data.{split}"
            )
        splits = set(called) or {parsed(root.name).split if is_one_of else "train"} - {""}
        return [root] if split in (splits or {"train"}) else []
    if not is_one(root, config):
        if entries := entries_of(root, config, language):
            return _of_split(entries, split, config, language)
        if config.format != "folder":
            files = _only_file(root, config, language)
            if len(files) == 1 and is_archive(files[0].name):
                return _of_root(files[0], split, config, language, is_one_of)
            return files if split == "train" else []
    layout = layout_of(root, config, language)
    return layout.files(root) if layout is not None and split == "train" else []


def _only_file(root: Path, config: DataConfig, language: bool) -> list[Path]:
    """The one file of a folder that names no splits, or all its shards."""
    entries = [
        Entry(path, parsed(path.name), layout)
        for path in sorted(root.iterdir())
        if path.is_file() and not is_about(path.name)
        if (layout := layout_of(path, config, language))
    ]
    if len({entry.name.whole for entry in entries}) == 1:
        return _all_shards(entries)
    raise _none_or_several(root, "train", entries, config, language)


def _of_split(
    entries: Sequence[Entry], split: str, config: DataConfig, language: bool
) -> list[Path]:
    """The files of the one entry that holds a split; none where it is left out.

    Raises:
        DataError: Several hold it, or train is left out, or a file that is not read seems to be it.
    """
    own = [entry for entry in entries if entry.name.split == split]
    own = [entry for entry in own if entry.name.is_plain] or own
    # a stated format decides among several
    own = [entry for entry in own if entry.format == config.format] or own
    if len({entry.name.whole for entry in own}) == 1:
        files = {entry.path: entry.layout.files for entry in own}
        return [file for path in _all_shards(own) for file in files[path](path)]
    folder = entries[0].path.parent
    if own or split == "train" or _seeming(folder, split, language):
        raise _none_or_several(folder, split, own, config, language)
    return []


def _all_shards(entries: Sequence[Entry]) -> list[Path]:
    """Files of one name in natural order.

    Raises:
        DataError: Their names say that some are missing.
    """
    num, there = entries[0].name.num_shards, {entry.name.shard for entry in entries}
    if num and len(there) != num:
        raise DataError(
            f"{entries[0].path} is one of {num} files, of which {len(there)} are there; fetch the"
            " others"
        )
    return natural_order(entry.path for entry in entries)


def _none_or_several(
    root: Path, split: str, own: Sequence[Entry], config: DataConfig, language: bool
) -> DataError:
    names = "|".join(folder_labels(config)) or "any"
    called = [each.called.format(split=split, labels=names) for each in layouts_of(language)]
    every = listed(sorted(path.name for path in root.iterdir()))
    state = f": {[entry.path.name for entry in own]}" if own else f" among {every}"
    stated = "" if config.format == "auto" else f" under data.format={config.format}"
    remedy = f"name the files with data.{split}={root}/FILE, or all with data.{split}={root}"
    seeming = {name: _seeming(root, name, language) for name in SPLITS}
    if seeming[split] and all(len(files) < 2 for files in seeming.values()):
        named = (f"data.{name}={files[0]}" for name, files in seeming.items() if files)
        remedy = f"name the files: {' '.join(named)}"
    return DataError(
        f"{root}: expected exactly one of {'; '.join(called)}; found {len(own)}{stated}{state};"
        f" {remedy}"
    )


def _seeming(folder: Path, split: str, language: bool) -> list[Path]:
    """Files whose names mention a split."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and is_data(path.name, language) and seems(path.name, split)
    ]
