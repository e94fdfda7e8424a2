"""``geomerge merge``: merge of two or more networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, percent, show_notes, watched, with_flags
from geomerge.cli.options import LogJson, ReportJson
from geomerge.evaluation.measures import cell, drop, unit
from geomerge.expert_options import DataOptions
from geomerge.merging import MergeOptions
from geomerge.processes import first, start
from geomerge.report.labels import short_task
from geomerge.runs import run_merge

__all__ = ["merge", "show_report"]


def merge(
    networks: Annotated[
        list[Path],
        typer.Argument(
            help="two or more networks a, b, ...; the path leads from the first to the last"
        ),
    ],
    data: DataOptions,
    options: MergeOptions,
    base: Annotated[
        Path | None,
        typer.Option(
            help="common ancestor that all networks were fine-tuned from",
            rich_help_panel="what to merge",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the run; default runs/A-B-HASH", rich_help_panel="output"),
    ] = None,
    pt: Annotated[
        bool, typer.Option("--pt", help="additional file merged.pt", rich_help_panel="output")
    ] = False,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Merge networks along a path that preserves their functions."""
    start(data.device)
    with watched(log_json) as show:
        folder, report, before = run_merge(
            networks, options, data, base=base, out=out, pt=pt, progress=show
        )
    if first():
        finish(folder, report, before, None if as_json else show_report, log_json)


def show_report(report: dict[str, Any]) -> None:
    """Print the accuracies, walks and data of a merge."""
    from rich.console import Console
    from rich.table import Table

    better = report["crossover"].get("better")
    if better is not None:
        print(f"note: {with_flags(better)}")
    names = {
        s: short_task(found["task"] or f"task of {s}") for s, found in report["networks"].items()
    }
    head = report["head"]
    measures = {s: found.get("measure", "accuracy") for s, found in report["networks"].items()}
    what = unit(measures.values()).replace("accuracy, %", "accuracy")
    table = Table(
        title=f"{what} on the test splits{', %' if what == 'accuracy' else ''}; "
        f"{head['protocol']} head"
    )
    losses = "loss" in measures.values()
    own = {row["name"]: row["test"].get(row["name"]) for row in report["results"]}
    last = "worst rise, %" if losses else "smallest"
    for heading in ("", *(f"{name} ({s})" for s, name in names.items()), last):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in report["results"]:
        values, worst = row["test"], None
        if None not in values.values():
            rises = [drop(own[s], value, measures[s]) for s, value in values.items() if losses]
            worst = max(rises) if losses else min(values.values())
        style = "bold" if row["name"] == "crossover" else None
        label = row["name"] + (" (hardly trained)" if row.get("hardly_trained") else "")
        cells = [cell(value, measures[s]) for s, value in values.items()]
        table.add_row(label, *cells, percent(worst), style=style)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    console.print(table)
    console.print(f"{head['protocol']} head: {head['meaning']}")
    at = report["crossover"]
    tried = sum(len(stage["candidates"]) for stage in report["stages"])
    console.print(
        f"preset {report['preset']}; crossover at t = {at['t']:.3f} by {at['pick']}, "
        f"damping {at['damping']:g}, walks: {tried}"
    )
    for stage in report["stages"]:
        _show_stage(console, stage)
    for leg in report["legs"]:
        kept = " and ".join(leg["keeps_function_of"])
        console.print(
            f"walked from {leg['walked_from']} to {leg['to']}, keeping "
            + (f"the function of {kept}" if kept else "no function")
            + f": {leg['metric']}; length {leg['length']:.3g}"
        )
    for found in report["relaxed"]:
        one, two = found["before"], found["after"]
        measure = measures[found["leg"]]
        scores = [cell(part["worst_accuracy"], measure) for part in (one, two)]
        worst = f", worst {unit([measure]).removesuffix(', %')} {' -> '.join(scores)}"
        worst += " %" if measure == "accuracy" else ""
        console.print(
            f"relaxed from {found['leg']}: energy {one['energy']:.3g} -> {two['energy']:.3g} "
            f"(bound {two['bound']:.3g}), length {one['length']:.3g} -> {two['length']:.3g}{worst}"
        )
    for name, found in report["alignment"].items():
        if found is not None:
            console.print(
                f"{name} aligned with a by {found['method']}: {found['moved']} of "
                f"{found['units']} units in {found['groups']} groups moved, distance to a "
                f"{found['distance_before']:.4g} -> {found['distance_after']:.4g}"
            )
    if report["bn"] is not None:
        console.print(f"BatchNorm statistics: {report['bn']}")
    for use in ("walk", "pick"):
        parts = [
            f"{d['inputs']} {d['task']} inputs of the {d['split']} split "
            + ("with labels" if d["labels"] else "without labels")
            for d in report["data"][use]
        ]
        console.print(f"data of the {use}: " + ("; ".join(parts) or "none"))
    show_notes(note for note in report["notes"] if note != better)


def _show_stage(console: Any, stage: dict[str, Any]) -> None:
    damping = stage["damping"]
    if damping["smallest"] != damping["largest"]:
        console.print(
            f"damping along the walk: {damping['first']:.2g} first, {damping['last']:.2g} last, "
            f"between {damping['smallest']:.2g} and {damping['largest']:.2g}"
        )
    budgets = stage["budgets"]
    if budgets is None:
        return
    console.print(
        f"budgets: a quadratic program in {budgets['programs_solved']} of {budgets['steps']} "
        f"steps, {budgets['steps_shortened']} shortened"
    )
    for name, price in budgets["shadow_prices"].items():
        console.print(
            f"  {name}: at most {budgets['limits'][name]:.3g}, bound {price['steps_bound']} steps, "
            f"shadow price {price['mean']:.3g} on average, {price['largest']:.3g} at most"
        )
