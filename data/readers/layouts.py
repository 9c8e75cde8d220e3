"""Ways to store a split, and what of a folder is stored so."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.errors import DataError
from data.readers.columns import are_labels
from data.readers.folders import label_folders, record_files
from data.readers.names import Name, is_archive, is_text, named_format, parsed
from data.readers.reading import listed
from data.readers.tables import is_saved_dataset


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


@dataclass(frozen=True)
class Entry:
    """Something in a folder that can be read."""

    path: Path
    name: Name
    layout: Layout

    @property
    def format(self) -> str:
        """The data.format it has."""
        return named_format(self.path.name) or self.layout.format


def entries_of(root: Path, config: DataConfig, language: bool) -> list[Entry]:
    """What is called after a split: in a folder, or else in its data/ or in that of a config.

    Raises:
        DataError: Several configs have splits.
    """

    def called(folder: Path) -> list[Entry]:
        return [
            Entry(path, name, layout)
            for path in sorted(folder.iterdir())
            if (name := parsed(path.name, is_folder=path.is_dir())).split
            if (layout := layout_of(path, config, language))
        ]

    if found := called(root):
        return found
    data = root / "data"
    if data.is_dir() and (found := called(data)):
        return found
    for folder in (data, root):
        configs = {p: called(p) for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else {}
        # folders called so may belong to any source tree
        configs = {p: e for p, e in configs.items() if any(each.path.is_file() for each in e)}
        if len(configs) > 1:
            raise DataError(
                f"{folder} holds {listed(sorted(p.name for p in configs))}, each with splits of its"
                " own; set data.path to one of them"
            )
        for found in configs.values():
            return found
    return []


def layout_of(path: Path, config: DataConfig, language: bool) -> Layout | None:
    """The first layout that fits a path."""
    return next((each for each in layouts_of(language) if each.fits(path, config)), None)


def layouts_of(language: bool) -> list[Layout]:
    """The layouts that a task reads."""
    return [each for each in LAYOUTS if (each.language if language else each.functions)]


def _is_file(test: Callable[[str], Any]) -> Callable[[Path, DataConfig], bool]:
    return lambda path, _: path.is_file() and bool(test(path.name))


def is_one(path: Path, config: DataConfig) -> bool:
    """Whether a folder is one source by what it holds, whatever the names in it."""
    if config.format != "folder" and is_saved_dataset(path):
        return True
    found = label_folders(path)
    return bool(found) and are_labels(found, config)


def _is_label_folder(path: Path, config: DataConfig) -> bool:
    """Whether the folders directly below are labels; data.format=folder says that they are."""
    return path.is_dir() and (config.format == "folder" or is_one(path, config))


# The first that fits a path is its layout.
LAYOUTS = (
    Layout(
        "{split}.jsonl, .json, .csv, .parquet (or with .gz, .xz, .zst, .bz2)",
        _is_file(named_format),
    ),
    Layout("{split}.txt, .md", _is_file(is_text), functions=False),
    Layout("{split}.tar, .zip", _is_file(is_archive)),
    Layout(
        "a saved dataset {split}/",
        lambda path, config: config.format != "folder" and is_saved_dataset(path),
        "datasets",
    ),
    Layout(
        "folders {split}/<label>/ (labels: {labels})", _is_label_folder, "folder", language=False
    ),
    *(
        Layout(
            "a folder {split}/ of files",
            lambda path, _: path.is_dir(),
            files=partial(record_files, texts=texts),
            functions=not texts,
            language=texts,
        )
        for texts in (False, True)
    ),
)
