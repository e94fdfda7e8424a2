"""``geomerge merge``: networks merged along a path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, percent, show_notes, watched
from geomerge.cli.options import (
    Arch,
    DataRoot,
    Device,
    Download,
    LogJson,
    Normalisations,
    Output,
    Points,
    ReportJson,
    Seed,
)

__all__ = ["merge", "show_report"]


def merge(
    networks: Annotated[
        list[Path],
        typer.Argument(help="Two networks or more: a, b, ...; the path leads from first to last."),
    ],
    manifold: Annotated[
        list[str] | None,
        typer.Option(help="Task whose inputs the walk may use; a=NAME says whose."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/A-B-HASH.")
    ] = None,
    sketch: Annotated[
        list[str] | None, typer.Option(help="b=FILE: the sketch of a network.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="b=NAME: task of a network, to choose and report on.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="joint, sketch or paper; default what the data allows.")
    ] = None,
    metric: Annotated[str, typer.Option(help="kronecker, exact, gram or euclidean.")] = "kronecker",
    output: Output = "hellinger",
    head: Annotated[
        str,
        typer.Option(help="shared, offset (classes of b after a's) or separate (task known)."),
    ] = "shared",
    align: Annotated[
        str,
        typer.Option(help="weights or activations: permute units of b, ... to be like a's; none."),
    ] = "none",
    bn: Annotated[
        str | None,
        typer.Option(help="keep or re-estimate BatchNorm statistics; default by the inputs given."),
    ] = None,
    damping: Annotated[
        float | None, typer.Option(help="mu; default several, the best is kept.")
    ] = None,
    learn: Annotated[
        str | None, typer.Option(help="damping: adjust it along one walk instead.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="b=0.02, b/3=0.02 (a class), b/*=0.02: how much worse it may get."),
    ] = None,
    relax: Annotated[
        bool, typer.Option("--relax", help="Relax the finished path to least energy.")
    ] = False,
    keep_zeros: Annotated[
        bool,
        typer.Option("--keep-zeros", help="Weights that are zero in every network stay so."),
    ] = False,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the walk's first step; default by preset.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each walk.")] = None,
    pick: Annotated[
        str | None,
        typer.Option(help="max-min, balanced, equal-drift, or a floor such as 'a>=0.80'."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most memory that may be held, such as 2GB.")
    ] = None,
    points: Points = 64,
    seed: Seed = 0,
    arch: Arch = None,
    normalisation: Normalisations = None,
    pt: Annotated[bool, typer.Option("--pt", help="Write merged.pt as well.")] = False,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Merge networks along a path that keeps what they do."""
    from geomerge.merging import MergeOptions
    from geomerge.runs import run_merge

    options = MergeOptions(
        manifold=tuple(manifold or ()),
        preset=preset,
        metric=metric,
        output=output,
        head=head,
        align=align,
        bn=bn,
        damping=damping,
        learning_rate=learning_rate,
        steps=steps,
        budget=tuple(budget or ()),
        learn=learn,
        relax=relax,
        keep_zeros=keep_zeros,
        pick=pick,
        memory=memory,
        points=points,
        seed=seed,
        task=tuple(task or ()),
        sketch=tuple(sketch or ()),
        arch=arch,
        normalisation=tuple(normalisation or ()),
        data_root=data_root,
        download=download,
        device=device,
    )
    with watched(log_json) as show:
        folder, report, before = run_merge(networks, options, out=out, pt=pt, on_progress=show)
    finish(folder, report, before, None if as_json else show_report, log_json)


def show_report(report: dict[str, Any]) -> None:
    """Print the accuracies of a merge, its walks and the data that they used."""
    from rich.console import Console
    from rich.table import Table

    names = {s: found["task"] or f"task of {s}" for s, found in report["networks"].items()}
    head = report["head"]
    table = Table(title=f"accuracy on the test splits, %; {head['protocol']} head")
    for heading in ("", *(f"{name} ({s})" for s, name in names.items()), "smallest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in report["results"]:
        values = list(row["test"].values())
        smallest = None if None in values else min(values)
        style = "bold" if row["name"] == "crossover" else None
        table.add_row(row["name"], *map(percent, values), percent(smallest), style=style)
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
        worst = ", worst accuracy {} -> {} %".format(
            *(percent(part["worst_accuracy"]) for part in (one, two))
        )
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
    show_notes(report["notes"])


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
