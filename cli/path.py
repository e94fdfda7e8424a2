"""``geomerge path``: any network of a finished run's path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.options import NetworkOut

__all__ = ["path"]


def path(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    at: Annotated[float, typer.Option(help="Where: 0 is a, 1 is b.")],
    out: NetworkOut,
) -> None:
    """Take a network off a finished run's path."""
    from geomerge.io.checkpoint import SUFFIXES, save_checkpoint
    from geomerge.io.files import check_output
    from geomerge.paths.path import WeightPath

    check_output(out, SUFFIXES)
    save_checkpoint(out, WeightPath(run / "path").checkpoint(at))
    print(f"{out}: the network at t = {at:g}")
