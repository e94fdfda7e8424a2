"""``geomerge report``: the page of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the page of a finished run again."""
    from geomerge.runs.run import open_run

    print(f"written to {open_run(run).write_page(open=open_it)}")
