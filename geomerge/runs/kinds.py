"""Kinds of runs, each with its pictures, model card, table and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from geomerge.data import Task
from geomerge.errors import RunError
from geomerge.io.files import write_bytes
from geomerge.paths.path import read_steps
from geomerge.report import draw_curves, draw_plane
from geomerge.report.card import write_merge_card, write_reconfigure_card, write_sparsify_card
from geomerge.report.compare import draw_compare
from geomerge.report.pages import (
    compare_page,
    merge_page,
    reconfigure_page,
    render,
    sparsify_page,
    stream_page,
)
from geomerge.report.pages.model import Page
from geomerge.report.schema import MergeRunReport
from geomerge.report.sparse_curves import draw_moves, draw_sparsity
from geomerge.report.stream import draw_stream
from geomerge.report.tables import compare_markdown, stream_markdown

__all__ = ["KINDS", "PAGE", "RunKind", "kind_of", "write_page"]

PAGE = "report.html"
Report = dict[str, Any]


@dataclass(frozen=True)
class RunKind:
    """Last files of the runs of one command, all made from the report alone.

    Attributes:
        name: Name of the command, and of its options in the recipe.
        page: Function of the folder and the report that returns the page.
        pictures: Functions that draw the report into a file, by the file's name.
        card: Function that writes the model card into a folder, of the report and the task of each
            network. None writes none.
        table: Function of the report that returns ``table.md``. None writes none.
    """

    name: str
    page: Callable[[Path, Report], Page]
    pictures: Mapping[str, Callable[[Report, Path], None]] = field(default_factory=dict)
    card: Callable[[Path, Report, Mapping[str, Task | None]], None] | None = None
    table: Callable[[Report], str] | None = None


def _merge_page(folder: Path, report: Report) -> Page:
    return merge_page(cast(MergeRunReport, report), read_steps(folder / "path" / "steps.jsonl"))


KINDS = {
    kind.name: kind
    for kind in (
        RunKind(
            "merge",
            _merge_page,
            {"curves.png": draw_curves, "plane.png": draw_plane},
            write_merge_card,
        ),
        RunKind(
            "sparsify",
            lambda _, report: sparsify_page(report),
            {"curves.png": draw_sparsity},
            write_sparsify_card,
        ),
        RunKind(
            "reconfigure",
            lambda _, report: reconfigure_page(report),
            {"curves.png": draw_moves},
            write_reconfigure_card,
        ),
        RunKind(
            "compare",
            lambda _, report: compare_page(report),
            {"compare.png": draw_compare},
            table=compare_markdown,
        ),
        RunKind(
            "stream",
            lambda _, report: stream_page(report),
            {"stream.png": draw_stream},
            table=stream_markdown,
        ),
    )
}


def kind_of(report: Report) -> RunKind:
    """Return the kind of a report's run.

    Raises:
        RunError: If the report names no command.
    """
    found = [KINDS[name] for name in report.get("recipe", ()) if name in KINDS]
    if not found:
        raise RunError("the report names no command of geomerge; name the folder of a finished run")
    return found[0]


def write_page(folder: Path, report: Report) -> Path:
    """Write the page of a run into its folder and return the file.

    Raises:
        RunError: If the folder lacks a picture that the report names.
    """
    page = kind_of(report).page(folder, report)
    write_bytes(folder / PAGE, render(page, folder).encode())
    return folder / PAGE
