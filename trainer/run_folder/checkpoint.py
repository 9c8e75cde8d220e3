"""The checkpoint on disk: written whole or not at all, verified before it is trusted.

    checkpoints/step-00000040/
        state.safetensors   fp32 weights and optimizer moments of the trained parameters
        trainer.json        counters, best validation, the whole recipe
        MANIFEST.json       written last: format, step, size and sha256 of every file, identity

A checkpoint is built in `.tmp-<step>-<uuid>`; every file and folder is synced, then the folder gets
its final name. No file names the newest checkpoint: it is the newest folder that verifies. Deleting
first renames to `.trash-...`, so no search finds a half-deleted checkpoint.
"""

import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import parsing
from data.prepared.manifest import file_fault, manifest_bytes, read_manifest, to_disk
from trainer.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
_WITHOUT_OWN_DIGEST = 1  # the format of versions before 0.3
STATE, TRAINER, MANIFEST = "state.safetensors", "trainer.json", "MANIFEST.json"
_PREFIX, _TEMPORARY, _TRASH = "step-", ".tmp-", ".trash-"
_LEFTOVER = re.compile(r"\.(tmp-|trash-step-)\d{8,}-[0-9a-f]{32}")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte matched its manifest."""

    path: Path
    step: int
    identity: dict[str, Any]
    trainer: dict[str, Any]

    def tensors(self) -> Mapping[str, "Tensor"]:
        """The fp32 state, on the CPU; each tensor is read when it is asked for.

        Raises:
            ModelError: Its manifest fits, and it is not a safetensors file all the same.
        """
        where = f"{self.path / STATE} cannot be read"
        with parsing(where, ModelError, "restore it, or take an older checkpoint by run.resume"):
            return _Tensors(self.path / STATE)


class _Tensors(Mapping[str, "Tensor"]):
    """The tensors of a safetensors file, none of them in memory."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        file: Any = safe_open(path, "pt")
        self._file, self._names = file, dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> "Tensor":
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"{_PREFIX}{step:08d}"


def write_checkpoint(
    root: Path,
    step: int,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, "Tensor"]],
    trainer: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> Path:
    """Publish a checkpoint in one rename; an interruption at any point leaves the others intact.

    Args:
        shapes: Name and shape of each tensor of the state, in their order.
        tensors: The state, in fp32 on the CPU; each is written before the next one is taken, and
            all are taken, whatever happens: other ranks take part in gathering them.
        trainer: Counters and recipe, as plain values.
        identity: Digests of base, tokenizer and data, which must be equal to continue.

    Returns:
        The folder; an existing one stays if it verifies and holds the same content.

    Raises:
        OSError: The disk is full or not writable; nothing is published, nothing removed.
    """
    final, left = root / checkpoint_name(step), iter(tensors)
    temporary = root / f"{_TEMPORARY}{step:08d}-{uuid.uuid4().hex}"
    counters = json.dumps(trainer, indent=2, sort_keys=True).encode()
    try:
        os.mkdir(temporary)  # a run folder that was removed is not made again
        files = {
            STATE: _write_synced(temporary / STATE, _state_pieces(shapes, left)),
            TRAINER: _write_synced(temporary / TRAINER, [counters]),
        }
        manifest = manifest_bytes({"format": FORMAT, "step": step, "identity": identity}, files)
        if final.exists() and not _fault(final) and (final / MANIFEST).read_bytes() == manifest:
            shutil.rmtree(temporary)
            return final
        _write_synced(temporary / MANIFEST, [manifest])
        to_disk(temporary)
        if final.exists():  # damaged, or the recipe has changed since
            discard(final)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for _ in left:
            pass
        raise
    to_disk(root)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint and read its small files.

    Raises:
        ModelError: It names the file and the fault.
    """
    if fault := _fault(path):
        raise ModelError(f"checkpoint {path}: {fault}")
    manifest = _manifest(path)
    trainer = json.loads((path / TRAINER).read_text(encoding="utf-8"))
    return Checkpoint(path, manifest["step"], manifest["identity"], trainer)


def load_step(root: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, verified."""
    return load_checkpoint(root / checkpoint_name(step))


def newest_checkpoint(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones were skipped."""
    passed_over: list[str] = []
    for path in reversed(_published(root)):
        if not (fault := _fault(path)):
            return load_checkpoint(path), passed_over
        passed_over.append(f"{path}: {fault}")
    return None, passed_over


def rotate(root: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    for path in _published(root)[:-keep]:
        if path.name != checkpoint_name(best_step or 0):
            discard(path)


def discard(path: Path) -> None:
    """Rename a checkpoint so that no search finds it, then delete it."""
    trash = path.parent / f"{_TRASH}{path.name}-{uuid.uuid4().hex}"
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Delete the remains of interrupted saves and deletions; the caller holds the run's lock."""
    for path in root.glob(".*"):
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _published(root: Path) -> list[Path]:
    """Checkpoints by step; whether they verify is another question."""
    return sorted(root.glob(f"{_PREFIX}*"))


def _manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return read_manifest(path / MANIFEST) if manifest["format"] == FORMAT else manifest


def _fault(path: Path) -> str:
    """What is wrong with a checkpoint; "" if every byte matches its manifest."""
    try:
        manifest = _manifest(path)
        if manifest["format"] not in (FORMAT, _WITHOUT_OWN_DIGEST):
            return f"format {manifest['format']}, this version reads {FORMAT}"
        if path.name != checkpoint_name(manifest["step"]):
            return f"the manifest is of step {manifest['step']}"
        files = manifest["files"]
        if files.keys() != {STATE, TRAINER}:
            return f"the manifest lists {sorted(files)}"
        return next(filter(None, (file_fault(path, n, said) for n, said in files.items())), "")
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        return f"{MANIFEST} is not readable ({type(error).__name__}: {error})"


def _state_pieces(
    shapes: Mapping[str, tuple[int, ...]], tensors: Iterator[tuple[str, "Tensor"]]
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: length of the header, header, tensors one after another."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, shape in shapes.items():
        given, tensor = next(tensors)
        assert (given, tuple(tensor.shape)) == (name, shape)
        yield tensor.contiguous().reshape(-1).numpy().data.cast("B")
    for _ in tensors:  # its end may say that a value was not finite
        raise AssertionError("more tensors than shapes")


def _write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file to disk; its entry of the manifest."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": size, "sha256": digest.hexdigest()}
