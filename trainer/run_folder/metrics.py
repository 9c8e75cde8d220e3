"""Progress bar, log.jsonl and trackers of a run, on rank 0."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from data.text import terminal
from data.text.escaping import tag
from trainer.config.sections import LogSection
from trainer.run_folder.folder import LOG, write_whole
from trainer.run_folder.trackers import TrackedRun
from trainer.run_folder.tracking import Entry, Tracking, text_entry

if TYPE_CHECKING:
    from trainer.engine.state import TrainState  # imports torch

DAMAGED_LOG = "damaged-log.txt"
_MOST_FILES = 100  # a corpus can have thousands; trackers draw a curve for each


class RunLog:
    """Writes each event once and in order, also when a run continues.

    Lines after the step of `state` come from an interrupted run. These steps are computed again, so
    the lines are removed from the log and from TensorBoard; other trackers have them already.

    Args:
        recipe: section.key -> value, for trackers.
    """

    def __init__(
        self,
        folder: Path,
        settings: LogSection,
        state: "TrainState",
        total_steps: int,
        recipe: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        has_last = {row["kind"]: row["step"] for row in _rows(folder / LOG)[0]}
        # A run that starts again at step 0 validates again before step 1.
        if damaged := keep_lines(folder / LOG, state.step or -1, is_scored=not state.is_unscored):
            self.say(f"{LOG}: {damaged} damaged lines moved to {DAMAGED_LOG}")
        tracked = TrackedRun(folder, recipe, state.step)
        self._trackers = [Tracking(name, tracked, has_last) for name in settings.trackers]
        self._path = folder / LOG
        self._file = self._path.open("a", encoding="utf-8")
        self._has_finished = False
        self._drawn: set[str] = set()  # files
        self._total_steps = total_steps
        self._has_bar = settings.progress and terminal.is_live()
        self._bar: terminal.Step | None = None
        self._first_step = state.step

    @property
    def tracker_lines(self) -> list[str]:
        """Where the run is in trackers, for people."""
        return [f"  tracker    {tracking.where}" for tracking in self._trackers if tracking.where]

    def say(self, *lines: str) -> None:
        """Print lines for people, above the bar."""
        terminal.say(*lines)

    def step(self, values: Mapping[str, Any]) -> None:
        """A logged training step; `values` holds step, loss, lr and rates."""
        self._write("train", values)
        norm = "-" if values["grad_norm"] is None else f"{values['grad_norm']:.2f}"
        shown = (
            f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  grad {norm}"
            f"  {values['records_per_second']:.0f} ex/s  {values['tokens_per_second']:.0f} tok/s"
        )
        if self._has_bar:
            self.advance(int(values["step"]), shown)
        else:
            self.say(f"step {int(values['step'])}/{self._total_steps}  {shown}")

    def advance(self, step: int, shown: str = "") -> None:
        """Move the bar, which is drawn from the first step on."""
        if self._has_bar:
            if self._bar is None:
                self._bar = terminal.Step("train", self._total_steps, self._first_step)
            self._bar.at(step, shown)

    def validation(self, values: Mapping[str, float | None]) -> None:
        """A validation; undefined values are left out of trackers."""
        self._write("valid", values)
        shown = (f"{k} {'undefined' if v is None else f'{v:.4f}'}" for k, v in values.items())
        self.say(f"validation after step {values['step']}: {'  '.join(list(shown)[1:])}")

    def samples(
        self, samples: Sequence[Mapping[str, Any]], pages: Sequence[str], step: int
    ) -> None:
        """Write answers of a language model to the log, and as text to trackers."""
        for place, (sample, page) in enumerate(zip(samples, pages, strict=True), 1):
            self._line({"kind": "sample", "step": step, **sample})
            self._track("sample", step, text_entry(f"samples/{place}", page, step))

    def files(self, kind: str, losses: Mapping[str, float], step: int) -> None:
        """Write losses by file: all to the log, those of the first files to trackers.

        `kind` is "train_file" or "valid_file".
        """
        self._line({"kind": kind, "step": step, "losses": dict(losses)})
        for name in losses:
            if len(self._drawn) < _MOST_FILES:
                self._drawn.add(name)
        drawn = {
            tag(f"{kind}/{name}"): loss for name, loss in losses.items() if name in self._drawn
        }
        self._track(kind, step, lambda to: to.scalars(drawn, step))

    def pr_curve(
        self, kind: str, labels_N: npt.ArrayLike, scores_N: npt.ArrayLike, step: int
    ) -> None:
        """Precision over recall of a split, for trackers that draw it; labels are 0 and 1."""
        self._track(kind, step, lambda to: to.pr_curve(f"{kind}/pr", labels_N, scores_N, step))

    def finish(self, report: Mapping[str, Any], folder: Path, step: int) -> None:
        """The test report, its metrics and its curve, once as long as the metrics stay."""
        self._has_finished = True
        model = report["predictors"]["model"]
        metrics = model.get("metrics", model)
        numbers = {f"test/{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
        row = {"kind": "test", "step": step, **numbers}
        if read_log(self._path, "test")[-1:] == [row]:
            return
        self._line(row)
        page = (folder / report["files"]["markdown"]).read_text(encoding="utf-8")
        page = re.sub(r"!\[[^\]]*\]\([^)]*\)\n?", "", page)  # pictures are not beside it there
        self._track("test", step, lambda to: to.finish(numbers, step))
        self._track("test", step, text_entry("report", page, step))
        if "pr" in report["files"]:
            with (folder / report["files"]["predictions"]).open(encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            self.pr_curve("test", [r["label"] for r in rows], [r["score"] for r in rows], step)

    def close(self) -> None:
        """Flush everything."""
        if self._bar is not None:
            self._bar.close()
        self._file.close()
        for tracking in self._trackers:
            tracking.close(has_finished=self._has_finished)

    def _write(self, kind: str, values: Mapping[str, float | None]) -> None:
        self._line({"kind": kind, **values})
        step = int(values["step"] or 0)
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if name != "step" and value is not None
        }
        self._track(kind, step, lambda to: to.scalars(numbers, step))

    def _track(self, kind: str, step: int, entry: Entry) -> None:
        """After the line of the log, which says what trackers have."""
        for tracking in self._trackers:
            tracking.send(kind, step, entry)

    def _line(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def keep_lines(path: Path, last_step: int, *, is_scored: bool = True) -> int:
    """Remove from a log the lines after `last_step` and a line that a kill cut off.

    Damaged lines move to another file: a log never keeps a run from continuing. Without
    `is_scored`, remove the validation after `last_step` too.

    Returns:
        Number of damaged lines.
    """
    if not path.exists():
        return 0
    rows, damaged = _rows(path)
    if damaged:
        with path.with_name(DAMAGED_LOG).open("ab") as aside:
            aside.write(b"".join(line + b"\n" for line in damaged))
    kept = [
        json.dumps(row) + "\n"
        for row in rows
        if row["step"] < last_step
        or (row["step"] == last_step and (is_scored or row["kind"].startswith("train")))
    ]
    write_whole(path, "".join(kept))
    return len(damaged)


def read_log(path: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The logged rows of a kind: "train" or "valid"."""
    return [row for row in _rows(path)[0] if row["kind"] == kind]


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """A value over steps, where it was logged and is defined."""
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def resources(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Time, throughput and memory of the logged training steps, as far as all of them have it."""
    of_key: dict[str, Callable[[list[float]], float]] = {
        "train_seconds": max,
        "tokens_per_second": median,
        "records_per_second": median,
        "memory_gib": max,
    }
    columns = {key: [row[key] for row in rows if key in row] for key in of_key}
    return {key: of_key[key](each) for key, each in columns.items() if len(each) == len(rows) > 0}


def _rows(path: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Rows of a log and its damaged lines; a last line that a kill cut off is neither."""
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows, damaged = [], []
    for line in lines:
        row = _row(line)
        if row is None:
            damaged.append(line)
        else:
            rows.append(row)
    return rows, damaged


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("kind"), str)
    return row if is_row and type(row.get("step")) is int else None
