"""The run folder: its lock, and small files written whole or not at all."""

import fcntl
import glob
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError

from data.prepared.manifest import folder_fault, seal, to_disk
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError, MachineError, ModelError
from trainer.run_folder.checkpoint import remove_leftovers

CHECKPOINTS, MODEL, REPORT, BASE = "checkpoints", "model", "report", "base"
START = "start"  # of LoRA, where it is drawn before the first step
BASELINES = "baselines"  # what they learned of the training data
FACTS, MODEL_FORMAT = "focaltune.json", 1  # of a trained model
LOG, RECIPE, LOCK, MANIFEST = "log.jsonl", "config.yaml", ".focaltune-run", "MANIFEST.json"
DATA, PASSPORT = "data.json", "run.json"
_LOCK_BEFORE = ".lock"  # of versions before 0.3; it holds the same text
_HOLDER = re.compile(r"process \d+ on .")


class RunLock:
    """Reserves the run folder for one live run; the kernel releases it when the process ends.

    Args:
        name: The file that is locked; its content names the holder.
        user: Who writes to the folder, for the error message.
    """

    def __init__(self, folder: Path, name: str = LOCK, user: str = "run") -> None:
        self._file = (folder / name).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read()
            self._file.close()
            raise MachineError(
                f"{folder}: another {user} is writing here ({holder}); wait for it, end it, or"
                " choose another run.output_dir"
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        """Let the next run in."""
        self._file.close()


def open_run_folder(config: RunConfig) -> RunLock:
    """Create or reopen the run folder, on rank 0.

    Raises:
        ConfigError: The folder holds files but no run, or a run although run.resume=never.
        MachineError: Not writable, or in use.
    """
    folder = config.output_dir
    if folder.is_dir() and any(folder.iterdir()) and not is_run_folder(folder):
        raise ConfigError(
            f"run.output_dir {folder} is not empty and holds no run; nothing was touched: choose"
            " another folder"
        )
    if (folder / RECIPE).is_file() and config.run.resume == "never":
        raise ConfigError(
            f"run.output_dir {folder} holds a run and run.resume=never; nothing was touched: choose"
            " another folder, or run.resume=auto to continue it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"run.output_dir {folder} is not writable: {error}") from error
    remove_leftovers(folder / CHECKPOINTS)
    for name in (MODEL, BASE, BASELINES):
        for path in _leftovers(folder / name):
            shutil.rmtree(path, ignore_errors=True)
    return lock


def link_as_before(run: Path) -> None:
    """Let scripts find the trained model as adapter/, as it was called until version 0.2."""
    with suppress(OSError):  # it exists, or the disk knows no links
        (run / "adapter").symlink_to(MODEL)


def is_run_folder(folder: Path) -> bool:
    """Whether a run has begun here: its lock is the first file it writes."""
    if (folder / LOCK).is_file():
        return True
    before = folder / _LOCK_BEFORE
    return before.is_file() and bool(_HOLDER.match(before.read_text("utf-8", "replace")[:99]))


def _publish(building: Path, folder: Path) -> None:
    """Seal a folder that `built` gave and put it in its place.

    Its files get the modes that the user's umask says; safetensors makes them private.
    """
    umask = _umask()
    for path in building.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    seal(building, MANIFEST, {"folder": folder.name})
    for path in (*building.rglob("*"), building):
        to_disk(path)
    old = folder.with_name(f".{folder.name}-old-{uuid.uuid4().hex}")
    if folder.exists():
        os.rename(folder, old)
    os.rename(building, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def built(folder: Path) -> Iterator[Path]:
    """A new folder, published in place of another once it is complete, held until then.

    What killed processes left beside it is removed; a process that lives holds its own.

    Raises:
        MachineError: The disk is full or not writable; what there was stays, the new one goes.
    """
    for path in _leftovers(folder):
        if _hold(path):
            shutil.rmtree(path, ignore_errors=True)
    building = _new_held(folder)
    made = building.stat()
    try:
        yield building
        if not os.path.samestat(made, building.stat()):  # a library made it anew
            raise FileNotFoundError(f"{folder.parent} was removed meanwhile")
        _publish(building, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(building, ignore_errors=True)
        raise MachineError(
            f"{folder} was not written: {error}; make room there, the same command continues"
        ) from error
    except ValueError:  # what was made is not what it has to be
        shutil.rmtree(building, ignore_errors=True)
        raise


def _leftovers(folder: Path) -> list[Path]:
    """Unfinished and replaced folders that `built` left beside one."""
    ours = re.compile(rf"\.{re.escape(folder.name)}-(old-)?[0-9a-f]{{32}}")
    beside = folder.parent.glob(f".{glob.escape(folder.name)}-*")
    return [path for path in beside if ours.fullmatch(path.name) and path.is_dir()]


def _new_held(folder: Path) -> Path:
    """A new folder beside one. Another process can remove it just before it is held."""
    for _ in range(3):  # some file systems lock no folders: there nobody removes any
        building = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        building.mkdir()
        with suppress(FileNotFoundError):
            if _hold(building):
                break
    return building


def _hold(folder: Path) -> bool:
    """Lock a folder until this process ends; False if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True


def verify(folder: Path, remedy: str) -> bool:
    """Compare a folder with its manifest; False if it has none, so somebody else made it.

    Raises:
        ModelError: A file differs; the message ends with the remedy.
    """
    if not (folder / MANIFEST).is_file():
        return False
    if fault := folder_fault(folder, MANIFEST):
        raise ModelError(f"{folder} is damaged: {fault}; {remedy}")
    return True


def _umask() -> int:
    """The umask; os.umask would change it for all threads while it reads it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("Umask:"))[6:], 8)


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a YAML file with its keys in order."""
    write_whole(path, yaml.safe_dump(dict(values), sort_keys=False))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    write_whole(path, json.dumps(values, indent=2) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write numpy arrays without pickle; readers never see half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _named(path), temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)


def write_whole(path: Path, text: str) -> None:
    """Write a file; readers never see half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _named(path):
        temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file of an error that says nothing of it, as of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
