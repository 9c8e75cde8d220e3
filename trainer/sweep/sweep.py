"""A sweep in the order it happens: run the cells, read them, report."""

from collections.abc import Sequence
from pathlib import Path

from trainer.errors import CellsFailedError
from trainer.sweep.findings import compare
from trainer.sweep.grid import Cell
from trainer.sweep.report import write_report
from trainer.sweep.results import read_result
from trainer.sweep.running import is_finished, run_cells


def run_sweep(root: Path, cells: Sequence[Cell], recipe: Path | None, num_gpus: int | None) -> None:
    """Run what is missing and write root/report.

    Args:
        root: Folder of the grid.
        cells: All of them.
        recipe: Theirs; None: report what is finished, run nothing.
        num_gpus: Ranks of a cell; None: one process without a launcher.

    Raises:
        StoppedError: A signal came.
        CellsFailedError: Cells did not finish; the report is written and names them.
    """
    failures = [] if recipe is None else run_cells(cells, recipe, num_gpus, _say)
    results = [read_result(cell) for cell in cells if is_finished(cell)]
    if results:
        missing = [cell.name for cell in cells if not is_finished(cell)]
        compared = compare(results, cells[0].config.task.name)
        page = write_report(root / "report", compared, failures, missing)
        _say(f"report: {page}")
    if failures:
        code = failures[0].code
        names = ", ".join(failure.cell for failure in failures)
        raise CellsFailedError(
            f"{len(failures)} of {len(cells)} cells failed, the others are finished: {names}", code
        )


def _say(line: str) -> None:
    print(line, flush=True)
