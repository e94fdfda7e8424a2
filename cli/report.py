"""``geomerge report``: page of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.console import working
from geomerge.runs.run import open_run

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    open_it: Annotated[
        bool,
        typer.Option("--open", help="display of the page in the browser", rich_help_panel="output"),
    ] = False,
) -> None:
    """Write the page of a finished run again."""
    with working(f"drawing {run}"):
        page = open_run(run).write_page(open=open_it)
    print(f"written to {page}")
