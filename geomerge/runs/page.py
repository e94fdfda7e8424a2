"""A run folder -> its ``report.html``, as the run ends and again from what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geomerge.errors import GeomergeError, RunError
from geomerge.io.files import write_bytes
from geomerge.paths.path import read_steps
from geomerge.report.pages import (
    compare_page,
    merge_page,
    reconfigure_page,
    render,
    sparsify_page,
    stream_page,
)
from geomerge.report.pages.model import Page
from geomerge.runs.folder import read_json, write_json

__all__ = ["PAGE", "run_report", "write_report"]

PAGE = "report.html"
_PAGES = {
    "sparsify": sparsify_page,
    "reconfigure": reconfigure_page,
    "compare": compare_page,
    "stream": stream_page,
}


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``report.json`` into a run's folder, and the page made of it.

    Args:
        folder: Where the run's pictures and path are.
        report: What the run found.

    Raises:
        RunError: If the folder does not hold what the report speaks of.
    """
    write_json(folder / "report.json", report)
    _write_page(folder, report)


def _write_page(folder: Path, report: dict[str, Any]) -> None:
    write_bytes(folder / PAGE, render(_page(folder, report), folder).encode())


def run_report(folder: str | Path) -> Path:
    """Make the report of a finished run again from its stored numbers and pictures.

    Args:
        folder: The run's folder.

    Returns:
        The file.

    Raises:
        RunError: If it is not the folder of a finished run, or is damaged.
    """
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise RunError(f"{folder} is not the folder of a finished run; name one")
    try:
        _write_page(folder, read_json(folder / "report.json"))
    except GeomergeError:
        raise
    except Exception as error:  # a file from outside may hold anything where numbers belong
        raise RunError(
            f"{folder} was made by another version of geomerge or is damaged; run its command again"
        ) from error
    return folder / PAGE


def _page(folder: Path, report: dict[str, Any]) -> Page:
    if "merge" in report["recipe"]:
        return merge_page(report, read_steps(folder / "path" / "steps.jsonl"))
    kind = next(kind for kind in _PAGES if kind in report["recipe"])
    return _PAGES[kind](report)
