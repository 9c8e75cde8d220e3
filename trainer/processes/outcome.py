"""Writes how each rank ended to a file, because exit codes of launchers are not reliable.

A supervisor names the folder in the environment of its ranks; without it nothing is written.
"""

import json
import os
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "FOCALTUNE_OUTCOMES"


@dataclass(frozen=True)
class Outcome:
    """The end of a rank; exit code 0 of rank 0 is the completion marker: everything is written.

    `error` is the class of the error, "" at success.
    """

    rank: int
    host: str
    exit_code: int
    error: str
    message: str


def own_rank() -> int:
    """This process's rank as far as its environment says; an error is reported under it."""
    value = os.environ.get("RANK", "0")
    return int(value) if value.isdecimal() else 0


def write_outcome(exit_code: int, error: str = "", message: str = "") -> None:
    """Write this rank's outcome, whole or not at all; a missing folder is only reported."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    rank = own_rank()
    outcome = Outcome(rank, socket.gethostname(), exit_code, error, message[:4000])
    path = Path(folder) / f"rank-{rank}.json"
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as failure:
        sys.stderr.write(f"outcome of rank {rank} not written: {failure}\n")


def read_outcomes(folder: Path) -> list[Outcome]:
    """The outcomes that ranks have written, in order of rank."""
    files = sorted(folder.glob("rank-*.json"))
    found = [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in files]
    return sorted(found, key=lambda outcome: outcome.rank)
