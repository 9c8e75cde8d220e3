"""A sweep in the order it happens: run the cells, read them, report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.text.terminal import step
from trainer.errors import CellsFailedError, ConfigError
from trainer.evaluation.measures import swept_measures
from trainer.run_folder.folder import RunLock
from trainer.sweep.findings import Comparison
from trainer.sweep.finished import finished_result
from trainer.sweep.grid import Cell
from trainer.sweep.paired import pair_methods
from trainer.sweep.report import write_report
from trainer.sweep.results import Result, UnfinishedError
from trainer.sweep.running import Failure, measure_cells, run_cells

# Not a run folder's lock: that would make a run folder of the grid's.
_LOCK = ".sweep.lock"


def run_sweep(
    root: Path,
    cells: Sequence[Cell],
    recipe: Path | None,
    num_gpus: int | None,
    suites: Sequence[str] = (),
    suite_data: Path = Path("suites"),
) -> None:
    """Run the cells that are not finished, measure them on suites, and write root/report.

    Args:
        recipe: Every cell's; None: run nothing, report the finished cells.
        num_gpus: Ranks of a cell; None: one process without a launcher.
        suites, suite_data: Names of suites, and where their data are.

    Raises:
        StoppedError: A signal came.
        MachineError: Another sweep runs cells in root.
        ConfigError: No cell is finished.
        CellsFailedError: Cells failed; the report is written and names them.
    """
    if recipe is None:
        _report(root, cells, ())
        return
    root.mkdir(parents=True, exist_ok=True)
    lock = RunLock(root, _LOCK, "sweep")
    try:
        failures = run_cells(cells, recipe, num_gpus)
        if len(failures) < len(cells):
            failures += measure_cells(cells, suites, suite_data) if suites else []
            _report(root, cells, failures)
    finally:
        lock.release()
    if failures:
        code = failures[0].code
        names = ", ".join(failure.cell for failure in failures)
        raise CellsFailedError(f"{len(failures)} of {len(cells)} cells failed: {names}", code)


def _report(root: Path, cells: Sequence[Cell], failures: Sequence[Failure]) -> None:
    """Write the report of the finished cells; a damaged file leaves only its own cell out."""
    results: list[Result] = []
    finished: list[Cell] = []
    missing: dict[str, str] = {}
    for cell in cells:
        try:
            results.append(finished_result(cell))
            finished.append(cell)
        except UnfinishedError as error:
            missing[cell.name] = str(error)
    if not results:
        first = cells[0].name
        raise ConfigError(
            f"no cell is finished with these settings under {root}: {first} {missing[first]}"
        )
    comparison = Comparison(tuple(results), swept_measures(results[0].measured))
    pairs = pair_methods(finished, list(comparison.scored))
    comparison = replace(comparison, paired=pairs)
    with step("writing the report"):
        page = write_report(root / "report", comparison, failures, missing)
    print(f"report: {page}")
    if missing:
        print(f"{len(missing)} of {len(cells)} cells are not finished; the report says why")
