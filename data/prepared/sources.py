"""The files of each split; a split without files shares train's."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.config import DataConfig, Weighted
from data.errors import DataError
from data.prepared.division import shares
from data.readers import SPLITS, locate, named_files, overlooked, source_digest, told_apart
from data.text.terminal import step


@dataclass(frozen=True)
class Source:
    """Where a split is read from.

    Attributes:
        paths: Its files, in order.
        held_out: The share of each split that takes a part of these files; the split is one of
            them, or gets the rest.
        names: Of those files that `told_apart` gave a longer name.
        weights: Of training files that have one.
    """

    paths: tuple[Path, ...]
    held_out: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[Path, str] = field(default_factory=dict)
    weights: Mapping[Path, float] = field(default_factory=dict)

    def name_of(self, path: Path) -> str:
        """A file's name, with as many folders as tell it from the other files."""
        return self.names.get(path, path.name)


def sources_of(config: DataConfig, language: bool) -> dict[str, Source]:
    """Files of the splits; a split without files shares train's.

    Raises:
        DataError: Something seems to hold such a split, and no share says that it is not meant.
    """
    paths = {name: tuple(locate(config, name, language=language)) for name in SPLITS}
    used = [path for of_split in paths.values() for path in of_split]
    of_all = shares(config, language=language)
    held_out = {name: share for name, share in of_all.items() if not paths[name]}
    for name in held_out:
        is_free = getattr(config.split, name) is None
        if is_free and (left := overlooked(config, name, used, language=language)):
            raise DataError(
                f"data.{name} is not set, but {left} seems to hold it; set data.{name}={left}, or"
                f" data.split.{name}={of_all[name]} to take that share of train and leave it unread"
            )
    longer = told_apart(used)
    sharing = Source(paths["train"], held_out, longer)
    sources = {
        name: sharing if name in ("train", *held_out) else Source(paths[name], {}, longer)
        for name in SPLITS
    }
    weighed = replace(sharing, weights=_weights(config, language))
    return sources | {"train": weighed}


@step("checking the files of the data")
def sources_digest(paths: Sequence[Path]) -> str:
    """sha256 of a file or folder, or of the names and contents of several."""
    if len(paths) == 1:
        return source_digest(paths[0])
    lines = "".join(f"{path.name}\0{source_digest(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _weights(config: DataConfig, language: bool) -> dict[Path, float]:
    """The weight of training files that a list gives one."""
    given = config.train if isinstance(config.train, list) else []
    return {
        file: each.weight
        for each in given
        if isinstance(each, Weighted)
        for file in named_files([each], "data.train", config, split="train", language=language)
    }
