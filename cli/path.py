"""``geomerge path``: any network of a finished run's path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.options import Arch, NetworkOut

__all__ = ["path"]


def path(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: NetworkOut,
    at: Annotated[
        float | None, typer.Option(help="Place on the path: 0 is a, 1 is b; default the result.")
    ] = None,
    arch: Arch = None,
) -> None:
    """Take a network off a finished run's path."""
    from geomerge.io.checkpoint import SUFFIXES
    from geomerge.io.files import check_output
    from geomerge.pretrained import stored_expert

    check_output(out, SUFFIXES)
    stored_expert(run, t=at, arch=arch).save(out)
    print(f"{out}: the network " + ("that came out" if at is None else f"at t = {at:g}"))
