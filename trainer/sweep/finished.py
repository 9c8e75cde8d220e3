"""A cell is finished if its run folder has a report with its settings, base and data."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.prepared.prepare import data_digests
from trainer.config.strict_yaml import read_yaml_file
from trainer.models.files import base_digest
from trainer.run_folder.folder import FACTS, MODEL, RECIPE, REPORT
from trainer.run_folder.resume import DECISIVE, config_changes
from trainer.sweep.grid import Cell
from trainer.sweep.results import Result, UnfinishedError, read_json, read_result, take


def finished_result(cell: Cell) -> Result:
    """Result of a cell whose report matches its current settings, base and data.

    config.yaml gives the settings, digests identify base and data, so paths may move.

    Raises:
        UnfinishedError: The report is missing or does not match, or a file cannot be read.
    """
    folder = cell.config.output_dir
    recipe, report = folder / RECIPE, folder / REPORT / "test.json"
    if not (recipe.is_file() and report.is_file()):
        raise UnfinishedError("has no report yet")
    # config.yaml is written whenever a run begins, the report when it ends.
    if report.stat().st_mtime_ns < recipe.stat().st_mtime_ns:
        raise UnfinishedError("has begun again since its report and has not ended")
    given, sections = cell.config.to_json(), (*DECISIVE, "eval", "replication")
    if changes := take(
        recipe, read_yaml_file, lambda saved: config_changes(saved, given, sections)
    ):
        raise UnfinishedError(f"was run with other settings ({'; '.join(changes)})")
    facts = take(report, read_json, lambda values: dict(values["facts"]))
    if facts.get("steps") is None:
        raise UnfinishedError(f"{report} is not the report of a training run")
    base = take(folder / MODEL / FACTS, read_json, lambda values: str(values["base_sha256"]))
    if changed := _changed_files(cell, base, facts):
        raise UnfinishedError(f"was run with another {', '.join(changed)}")
    return read_result(cell)


def unfinished(cell: Cell) -> str | None:
    """Why a cell is not finished; None if it is."""
    try:
        finished_result(cell)
    except UnfinishedError as error:
        return str(error)
    return None


def _changed_files(cell: Cell, base_sha256: str, facts: Mapping[str, Any]) -> list[str]:
    """Which of base, tokenizer and splits have changed since the run."""
    config = cell.config
    try:
        is_other_base = base_digest(config.model, config.run.seed) != base_sha256
        digests = _data_digests(
            config.data.model_dump_json(), config.tokenizer_folder, config.is_language
        )
    except (OSError, ValueError) as error:
        raise UnfinishedError(f"cannot be compared with its base and data: {error}") from error
    changed = [name for name, digest in digests.items() if facts.get(f"sha256_{name}") != digest]
    return ["base"] * is_other_base + changed


@cache  # most cells of a sweep share the data
def _data_digests(data: str, tokenizer_folder: Path, is_language: bool) -> dict[str, str]:
    config = DataConfig.model_validate_json(data)
    return data_digests(config, tokenizer_folder, language=is_language)
