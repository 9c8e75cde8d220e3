"""Progress bar, log.jsonl and TensorBoard of a run, on rank 0."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.text import terminal
from data.text.escaping import tag
from trainer.config.sections import LogSection
from trainer.run_folder.folder import LOG, write_whole

if TYPE_CHECKING:
    from trainer.engine.state import TrainState  # imports torch

DAMAGED_LOG = "damaged-log.txt"
_MOST_FILES = 100  # a corpus can have thousands; TensorBoard draws a curve for each


class RunLog:
    """Writes each event once and in order, also when a run continues.

    Lines after the step of `state` come from an interrupted run. These steps are computed again, so
    the lines are removed from the log and from TensorBoard.
    """

    def __init__(
        self, folder: Path, settings: LogSection, state: "TrainState", total_steps: int
    ) -> None:
        # A run that starts again at step 0 validates again before step 1.
        if damaged := keep_lines(folder / LOG, state.step or -1, is_scored=not state.is_unscored):
            self.say(f"{LOG}: {damaged} damaged lines moved to {DAMAGED_LOG}")
        self._writer: Any = None
        if settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            curves = folder / "tensorboard"
            curves.mkdir(exist_ok=True)  # it would make a run folder that was removed again
            self._writer = SummaryWriter(str(curves), purge_step=state.step + 1)
        self._file = (folder / LOG).open("a", encoding="utf-8")
        self._drawn: set[str] = set()  # files
        self._total_steps = total_steps
        self._has_bar = settings.progress and terminal.is_live()
        self._bar: terminal.Step | None = None
        self._first_step = state.step

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
        """A validation; undefined values are left out of TensorBoard."""
        self._write("valid", values)
        shown = (f"{k} {'undefined' if v is None else f'{v:.4f}'}" for k, v in values.items())
        self.say(f"validation after step {values['step']}: {'  '.join(list(shown)[1:])}")

    def samples(
        self, samples: Sequence[Mapping[str, Any]], pages: Sequence[str], step: int
    ) -> None:
        """Write answers of a language model to the log, and as text to TensorBoard."""
        for place, (sample, page) in enumerate(zip(samples, pages, strict=True), 1):
            self._line({"kind": "sample", "step": step, **sample})
            if self._writer is not None:
                self._writer.add_text(f"samples/{place}", page, step)

    def files(self, kind: str, losses: Mapping[str, float], step: int) -> None:
        """Write losses by file: all to the log, those of the first files to TensorBoard.

        `kind` is "train_file" or "valid_file".
        """
        self._line({"kind": kind, "step": step, "losses": dict(losses)})
        if self._writer is not None:
            for name, loss in losses.items():
                if name in self._drawn or len(self._drawn) < _MOST_FILES:
                    self._drawn.add(name)
                    self._writer.add_scalar(tag(f"{kind}/{name}"), loss, step)

    def close(self) -> None:
        """Flush everything."""
        if self._bar is not None:
            self._bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _write(self, kind: str, values: Mapping[str, float | None]) -> None:
        self._line({"kind": kind, **values})
        if self._writer is not None:
            step = int(values["step"] or 0)
            for name, value in values.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(f"{kind}/{name}", value, step)
            self._writer.flush()

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
