"""``geomerge reconfigure``: walk from configuration to configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, percent, show_notes, watched
from geomerge.cli.options import (
    Arch,
    Batch,
    Choose,
    Damping,
    DataRoot,
    Device,
    Download,
    Inputs,
    LogJson,
    Manifold,
    Mix,
    Normalisations,
    Output,
    Points,
    Rate,
    Refresh,
    ReportJson,
    Seed,
    Stages,
    Statistics,
)

__all__ = ["reconfigure"]


def reconfigure(
    source: Annotated[
        Path,
        typer.Argument(help="A network's file, or the folder of a sparsify or reconfigure run."),
    ],
    plan: Annotated[
        Path, typer.Option(help="YAML: a list of {name, remove: {layer: n}, restore: {layer: n}}.")
    ],
    manifold: Manifold = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/NAME-PLAN-HASH.")
    ] = None,
    output: Output = "tempered",
    choose: Choose = "greedy",
    bn: Statistics = None,
    damping: Damping = None,
    learning_rate: Rate = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps against the drift in each move; default 3600.")
    ] = None,
    batch: Batch = 128,
    stages: Stages = 10,
    refresh: Refresh = 3,
    inputs: Inputs = None,
    mix: Mix = None,
    points: Points = 32,
    seed: Seed = 0,
    arch: Arch = None,
    normalisation: Normalisations = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Remove and restore units, step by step."""
    from geomerge.pruning.options import SparsifyOptions
    from geomerge.runs import run_reconfigure

    options = SparsifyOptions(
        manifold=manifold,
        output=output,
        choice=choose,
        bn=bn,
        damping=damping,
        learning_rate=learning_rate,
        steps=steps,
        batch=batch,
        stages=stages,
        refresh=refresh,
        inputs=inputs,
        mix=mix,
        points=points,
        seed=seed,
        arch=arch,
        normalisation=tuple(normalisation or ()),
        data_root=data_root,
        download=download,
        device=device,
    )
    with watched(log_json) as show:
        folder, report, before = run_reconfigure(source, plan, options, out=out, on_progress=show)
    finish(folder, report, before, None if as_json else _show, log_json)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    task = report["network"]["task"]
    table = Table(title=f"{report['network']['file']} on {task}, accuracy on the test split, %")
    for heading in ("configuration", "units gone", "walked", "just cut out", "epochs"):
        table.add_column(heading, justify="left" if heading == "configuration" else "right")
    table.add_row(report["dense"]["name"], "0", percent(report["dense"]["test"]), "-", "-")
    for one in report["configurations"]:
        gone = ", ".join(f"{len(units)} of {layer}" for layer, units in one["removed"].items())
        numbers = (percent(one["result"]["test"]), percent(one["cut_out"]["test"]))
        table.add_row(one["name"], gone or "0", *numbers, f"{one['epochs']:.2f}")
    console.print(table)
    show_notes(report["notes"])
    console.print(
        f"data of the walks: {report['data']['walk']['inputs']} {task} inputs of the train split "
        "without labels; epochs: three forward passes over the training split each"
    )
