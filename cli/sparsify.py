"""``geomerge sparsify``: removal of weights or units."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, percent, show_notes, watched
from geomerge.cli.options import LogJson, NetworkFile, ReportJson
from geomerge.expert_options import ExpertOptions
from geomerge.pruning.options import SparsifyFiles, SparsifyOptions

__all__ = ["sparsify"]


def sparsify(
    network: NetworkFile,
    options: SparsifyOptions,
    data: ExpertOptions,
    files: SparsifyFiles,
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the run; default runs/NAME-HASH", rich_help_panel="output"),
    ] = None,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Remove weights or units while preserving the function.

    The weights are removed in stages, and the remaining weights preserve the outputs. No labels are
    needed.
    """
    from geomerge.processes import first, start
    from geomerge.runs import run_sparsify

    start(data.device)
    with watched(log_json) as show:
        folder, report, before = run_sparsify(
            network, options, data, files=files, out=out, progress=show
        )
    if first():
        finish(folder, report, before, None if as_json else _show, log_json)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    task = report["network"]["task"]
    table = Table(title=f"{report['network']['file']} on {task}, test split")
    for heading in ("", "zeros, %", "accuracy, %", "as dense, %", "drift"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in report["results"]:
        numbers = (percent(row["zeros"]), percent(row["test"]), percent(row["agreement"]))
        style = "bold" if row["name"].startswith("walk") else None
        table.add_row(row["name"], *numbers, f"{row['drift']:.3g}", style=style)
    console.print(table)
    console.print(
        f"as dense: inputs that get the dense network's label; drift: mean squared change of the "
        f"{report['output']} outputs; both on selection inputs"
    )
    for layer, units in report["removed"].items():
        console.print(f"removed from {layer}: {len(units)} units")
    for path in report["paths"]:
        console.print(
            f"{path['name']}: length {path['length']:.3g}, damping {path['damping']:.2g}, as dense "
            f"{percent(path['agreement'])} %" + (", kept" if path["chosen"] else "")
        )
        for name, price in path["shadow_prices"].items():
            console.print(f"  budget of {name}: shadow price {price:.3g} at most")
    if "shrunk" in report:
        small = report["shrunk"]
        one, two = small["before"], small["after"]
        console.print(
            f"shrunk: parameters {one['parameters']:,} -> {two['parameters']:,}, FLOPs "
            f"{one['flops']:,} -> {two['flops']:,}, {small['speed_up']:.2f} x as fast on batches "
            f"of {small['batch']}, outputs differ by {small['difference']:.1e} (relative)"
        )
    show_notes(report["notes"])
    if report["bn"] is not None:
        console.print(f"BatchNorm statistics: {report['bn']}")
    data = report["data"]
    console.print(
        f"data of the walk: {data['walk']['inputs']} {task} inputs of the train split without "
        f"labels; cost {report['cost']['epochs']:.1f} epochs of training"
    )
    if data["last_leg"] is not None:
        console.print(f"data of the last leg: {data['last_leg']['inputs']} examples with labels")
