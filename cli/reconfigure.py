"""``geomerge reconfigure``: walks between configurations of a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, percent, show_notes, watched
from geomerge.cli.options import LogJson, ReportJson
from geomerge.expert_options import ExpertOptions
from geomerge.pruning.options import ReconfigureOptions

__all__ = ["reconfigure"]


def reconfigure(
    source: Annotated[
        Path,
        typer.Argument(help="file of a network, or folder of a sparsify or reconfigure run"),
    ],
    plan: Annotated[
        Path,
        typer.Option(
            help="YAML list of {name, remove: {layer: n}, restore: {layer: n}}",
            rich_help_panel="what to remove",
        ),
    ],
    options: ReconfigureOptions,
    data: ExpertOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of the run; default runs/NAME-PLAN-HASH", rich_help_panel="output"
        ),
    ] = None,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Remove and restore units by a plan.

    Each step of the plan is a walk that preserves the function of the initial network.
    """
    from geomerge.runs import run_reconfigure

    with watched(log_json) as show:
        folder, report, before = run_reconfigure(
            source, plan, options, data, out=out, progress=show
        )
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
