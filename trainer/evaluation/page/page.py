"""Reports in Markdown -> index.html beside them: one file with its pictures, and no script."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.page.about import about_run
from trainer.evaluation.page.html import as_html, page_template
from trainer.evaluation.report import write_files
from trainer.run_folder.folder import is_run_folder

PAGE = "index.html"
_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_page(folder: Path, title: str, run: Path | None = None) -> Path:
    """Write index.html: every report of a folder, and what is known of the run; returns its path.

    Args:
        folder: Holds NAME.md and its pictures, and NAME.json, whose "errors" are shown.
        run: The folder of the run that they are of; None where there is none.
    """
    names = [path.stem for path in folder.glob("*.md")]
    names.sort(key=lambda name: (name.partition("_")[0] != "test", name))
    about = about_run(run) if run is not None and is_run_folder(run) else None
    reports = [
        {
            "name": name,
            "html": as_html((folder / f"{name}.md").read_text(encoding="utf-8"), folder),
            "errors": _errors(folder / f"{name}.json"),
        }
        for name in names
    ]
    page = page_template(_TEMPLATE).render(
        title=title, reports=reports, about=about, listed=_listed
    )
    write_files(folder, {PAGE: page})
    return folder / PAGE


def page_line(folder: Path, run: Path) -> str:
    """Write the page of a run's reports; a line that says where it is, or why there is none.

    All that it shows is on disk already: a fault of the page costs nobody a finished run.
    """
    try:
        page = write_page(folder, run.name, run)
    except Exception as error:
        return f"page    was not written: {type(error).__name__}: {error}"
    return f"page    {page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page}"


def _errors(path: Path) -> list[Mapping[str, Any]]:
    """What a report says of its worst errors."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    errors: list[Mapping[str, Any]] = content.get("errors", [])
    return errors


def _listed(classes: str | Sequence[str]) -> str:
    """The class of a function, or those of several at once."""
    return classes if isinstance(classes, str) else ", ".join(classes) or "none"
