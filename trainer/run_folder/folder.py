"""The run folder: its lock, and small files written whole or not at all."""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trainer.config.sections import RunConfig
from trainer.errors import ConfigError, MachineError
from trainer.run_folder.checkpoint import remove_leftovers

CHECKPOINTS, ADAPTER, REPORT, BASE = "checkpoints", "adapter", "report", "base"
LOG, RECIPE, LOCK = "log.jsonl", "config.yaml", ".lock"


class RunLock:
    """Reserves the run folder for one live run; the kernel releases it when the process ends.

    Args:
        folder: The run folder, which exists.
        name: The file that is locked; its content names the holder.
        user: What writes to the folder, for the error message.

    Raises:
        MachineError: Another live run holds it.
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
    is_run = (folder / LOCK).is_file()  # the first thing a run writes, before it can fail
    if folder.is_dir() and any(folder.iterdir()) and not is_run:
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
    for pattern in (f".{BASE}-*", f".{ADAPTER}-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    return lock


def write_recipe(folder: Path, values: Mapping[str, Any]) -> None:
    """Write config.yaml: the resolved recipe, which starts the same run again."""
    write_whole(folder / RECIPE, yaml.safe_dump(dict(values), sort_keys=False))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file for people and programs."""
    write_whole(path, json.dumps(values, indent=2) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write numpy arrays without pickle; readers never see half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)


def write_whole(path: Path, text: str) -> None:
    """Write a file; readers never see half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
