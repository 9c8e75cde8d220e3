"""A manifest: size and digest of every file of a folder, and a digest of the manifest itself.

A sealed folder is checked before anything in it is used, because a flipped bit in tokens or weights
changes results without a word, and one in an Arrow file can end the process.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from data.readers import file_digest

# sha256 for what is given away; xxh3 for caches, at a tenth of the time.
ALGORITHMS: dict[str, Callable[..., Any]] = {"sha256": hashlib.sha256, "xxh3_128": xxhash.xxh3_128}
_FILES, _OWN = "files", "sha256_of_the_rest"


def seal(folder: Path, name: str, content: Mapping[str, Any], algorithm: str = "sha256") -> None:
    """Write the manifest of all other files of a folder, subfolders included.

    Args:
        folder: Complete but for the manifest.
        name: File name of the manifest.
        content: Facts that it holds too.
        algorithm: A key of ALGORITHMS.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != name)
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            algorithm: file_digest(path, ALGORITHMS[algorithm]),
        }
        for path in paths
    }
    (folder / name).write_bytes(manifest_bytes(content, files))


def manifest_bytes(content: Mapping[str, Any], files: Mapping[str, Any]) -> bytes:
    """The text of a manifest, with its own digest."""
    values = json.loads(json.dumps({**content, _FILES: files}))  # as it will be read
    return json.dumps(values | {_OWN: _digest_of(values)}, indent=2, sort_keys=True).encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest whose own digest is right.

    Raises:
        ValueError: It is not readable, or its digest is wrong.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.pop(_OWN, None) != _digest_of(values):
        raise ValueError(f"{path.name} does not match its own digest")
    return values


def folder_fault(folder: Path, name: str) -> str:
    """The first fault of a sealed folder; "" where every byte is as it was sealed."""
    try:
        files = read_manifest(folder / name)[_FILES]
        return next(filter(None, (file_fault(folder, n, said) for n, said in files.items())), "")
    except FileNotFoundError:
        return f"{name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        return f"{name} is not readable ({error})"


def file_fault(folder: Path, name: str, said: Mapping[str, Any]) -> str:
    """What is wrong with one file of a sealed folder; "" if nothing is."""
    path = folder / name
    if path.is_symlink() or not path.is_file():
        return f"{name} is missing or not a plain file"
    if path.stat().st_size != said["bytes"]:
        return f"{name} has {path.stat().st_size} bytes, the manifest says {said['bytes']}"
    algorithm = next(key for key in ALGORITHMS if key in said)
    is_same = file_digest(path, ALGORITHMS[algorithm]) == said[algorithm]
    return "" if is_same else f"{name} does not match its {algorithm}"


def to_disk(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
