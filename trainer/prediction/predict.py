"""The command: what is checked before the model loads, the scores, and what is written."""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from data.readers.reading import shown
from data.text import terminal
from trainer.errors import ConfigError
from trainer.prediction.changes import Lines, changed_lines
from trainer.prediction.foreign import ForeignLog, known_fingerprints
from trainer.prediction.walking import Walk, git_top
from trainer.processes.imports import stack_imports
from trainer.run.commands import joined_if_several, without_unused
from trainer.run.trained import open_trained

if TYPE_CHECKING:
    from trainer.prediction.report import Report

FOUND = 1  # exit code of --fail-above
_OURS = (  # how files of ours begin
    *(b"focaltune: functions by rank\n", b'{\n "focaltune": {', b'{"rank": 1, "file": '),
    *(b"rank,file,line,end_line,function,", b"<!DOCTYPE html>\n<!-- focaltune: "),
    b'{\n "properties": {\n  "focaltune": ',
)


@dataclass(frozen=True)
class Wanted:
    """What is to be scored and written, as the command line says.

    Attributes:
        paths: Files and folders.
        every: Vendored and generated files, too.
        output: A file; None: the terminal.
        top: Functions that are listed at most.
        fail_above: Probability above which the exit code is FOUND.
        changed_since: Only functions that changed since this revision.
        baseline: SARIF of ours; what it has is not listed.
        findings: SARIF of another analyser; only the functions that it names are scored.
    """

    paths: Sequence[Path]
    every: bool = False
    format: str = "text"
    output: Path | None = None
    top: int | None = None
    fail_above: float | None = None
    changed_since: str | None = None
    baseline: Path | None = None
    findings: Path | None = None


def predict(model: Path, wanted: Wanted, version: str, base: Path | None = None) -> int:
    """Score the functions of a source tree; returns the exit code.

    As one rank of those that the launchers above started, it scores its share.

    Raises:
        ConfigError: A path, a revision or a SARIF file cannot be used; the model learned something
            else than functions; the output file is somebody else's.
        ModelError: The folder holds no trained model, or its base is missing or another.
    """
    _check(wanted)
    walk = Walk(wanted.paths, every=wanted.every)
    foreign = None if wanted.findings is None else ForeignLog(wanted.findings, walk.root)
    lines = foreign.lines if foreign else None
    if wanted.changed_since is not None:
        lines = _changed(walk, wanted.changed_since)
    known = set[str]() if wanted.baseline is None else known_fingerprints(wanted.baseline)
    trained = open_trained(model, base)
    if trained.config.is_language:
        raise ConfigError(
            f"{model} learned {trained.config.task.name}; predict takes a model that learned"
            " functions (task.name=classification)"
        )
    store = joined_if_several(trained.config)
    without_unused(trained.config)
    with stack_imports():
        from trainer.processes.distributed import agreed, start, stop
        from trainer.run.build import alone

    from trainer.prediction.about import about
    from trainer.prediction.ranked import Ranked
    from trainer.prediction.report import Report
    from trainer.prediction.tree import Tree, scored_functions

    ranks = alone() if store is None else start(trained.config.engine.timeout_seconds, store)
    with redirect_stdout(sys.stderr):  # standard output is the report's
        network = trained.load(ranks)
    with Ranked() as ranked:
        report = Report(about(trained), Tree(walk, lines), ranked, walk.root, wanted.top)
        for one in scored_functions(report.tree, trained, network, ranks):
            report.add(one, known, keep=ranks.is_main)

        def write() -> None:
            if ranks.is_main:
                _write(report, wanted, foreign, version)

        if store is None:
            write()
        else:
            agreed(ranks, write)
            stop()
    is_found = wanted.fail_above is not None and report.worst > wanted.fail_above
    return FOUND if is_found else 0


def _check(wanted: Wanted) -> None:
    """Refuse what can be known to fail before the model loads.

    Raises:
        ConfigError: It says what.
    """
    if wanted.top is not None and wanted.top < 1:
        raise ConfigError(f"--top {wanted.top}: give a number above 0")
    if wanted.fail_above is not None and not 0 <= wanted.fail_above <= 1:
        raise ConfigError(f"--fail-above {wanted.fail_above}: a probability lies from 0 to 1")
    if wanted.findings is not None and wanted.changed_since is not None:
        raise ConfigError("--findings and --changed-since both choose functions; give one of them")
    output = wanted.output
    if output is None or not output.exists():
        return
    if not output.is_file():
        raise ConfigError(f"--output {output} is not a file; name one")
    with output.open("rb") as stream:
        head = stream.read(max(map(len, _OURS)))
    if head and not head.startswith(_OURS):
        raise ConfigError(f"--output {output} exists and is not from predict; name another file")


def _changed(walk: Walk, revision: str) -> Lines:
    """Changed lines by the walk's names of files.

    Raises:
        ConfigError: The paths are not in one repository.
    """
    if walk.root != git_top(walk.root):
        raise ConfigError("--changed-since: the paths are not in one git repository; name others")
    return changed_lines(walk.root, revision)


def _write(report: "Report", wanted: Wanted, foreign: ForeignLog | None, version: str) -> None:
    from trainer.prediction.formats import FORMATS
    from trainer.prediction.sarif import write_sarif

    if foreign is not None:
        num, num_left = foreign.rank(report.ranked)
        terminal.say(f"{num:,} findings have a rank; {num_left:,} are in no scored function")

    def write(stream: IO[str]) -> None:
        if wanted.format != "sarif":
            FORMATS[wanted.format](report, stream)
        elif foreign is not None:
            foreign.write(stream)
        else:
            write_sarif(report, stream, version)

    if wanted.output is None:
        write(sys.stdout)
        return
    temporary = wanted.output.with_name(f".{wanted.output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            write(stream)
        os.replace(temporary, wanted.output)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{shown(str(wanted.output))}: {report.num_functions:,} functions in {wanted.format}")
