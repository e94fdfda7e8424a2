"""``geomerge path``: export of a network on a finished run's path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.console import working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Force, NetworkOut
from geomerge.expert_options import ExpertOptions
from geomerge.io.checkpoint import SUFFIXES, save_checkpoint
from geomerge.io.files import check_output
from geomerge.io.precision import DTYPES, with_dtype
from geomerge.options import check_known
from geomerge.pretrained import stored_expert

__all__ = ["path"]


def path(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    out: NetworkOut,
    data: Annotated[ExpertOptions, Flags(only=("arch",))],
    at: Annotated[
        float | None,
        typer.Option(
            help="t on the path, from 0 (first network) to 1 (last network); default the result",
            rich_help_panel="data",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="dtype of the written weights: float32, float16 or bfloat16; default that of the "
            "network",
            rich_help_panel="output",
            autocompletion=lambda: [*DTYPES],
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write a network on a finished run's path to a file."""
    check_output(out, SUFFIXES, replace=force)
    check_known("dtype", dtype, DTYPES)
    with working(f"reading {run}"):
        expert = stored_expert(run, t=at, arch=data.arch)
    kind = expert.meta.get("dtype") if dtype is None else dtype
    save_checkpoint(out, replace(expert.checkpoint, meta=with_dtype(expert.meta, kind)))
    print(f"{out}: the network " + ("that came out" if at is None else f"at t = {at:g}"))
