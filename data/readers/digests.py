"""Digests of files and folders."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
