"""``geomerge path``: a network of a finished run's path, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.console import working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Force, NetworkOut
from geomerge.expert_options import ExpertOptions
from geomerge.io.checkpoint import SUFFIXES
from geomerge.io.files import check_output
from geomerge.pretrained import stored_expert

__all__ = ["path"]


def path(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    out: NetworkOut,
    data: Annotated[ExpertOptions, Flags(only=("arch",))],
    at: Annotated[
        float | None,
        typer.Option(
            help="place on the path: 0 is the first network, 1 the last; default the result",
            rich_help_panel="data",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Take a network off a finished run's path."""
    check_output(out, SUFFIXES, replace=force)
    with working(f"reading {run}"):
        expert = stored_expert(run, t=at, arch=data.arch)
    expert.save(out)
    print(f"{out}: the network " + ("that came out" if at is None else f"at t = {at:g}"))
