"""``geomerge merge``: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import percent, progress_bar
from geomerge.cli.options import Arch, DataRoot, Device, Download, Normalisations, Output

__all__ = ["merge", "show_report"]


def merge(
    a: Annotated[Path, typer.Argument(help="Network a, where the path starts.")],
    b: Annotated[Path, typer.Argument(help="Network b, where it ends.")],
    manifold: Annotated[
        list[str] | None,
        typer.Option(help="Task whose inputs the walk may use; a=NAME and b=NAME say whose."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/A-B-HASH.")
    ] = None,
    sketch_a: Annotated[Path | None, typer.Option(help="File with a's sketch.")] = None,
    sketch_b: Annotated[Path | None, typer.Option(help="File with b's sketch.")] = None,
    task_a: Annotated[str | None, typer.Option(help="Task of a, to choose and report on.")] = None,
    task_b: Annotated[str | None, typer.Option(help="Task of b, to choose and report on.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="sketch or paper; default what the data allows.")
    ] = None,
    metric: Annotated[str, typer.Option(help="kronecker or euclidean.")] = "kronecker",
    output: Output = "hellinger",
    damping: Annotated[
        float | None, typer.Option(help="mu; default several, the best is kept.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each walk.")] = None,
    pick: Annotated[
        str | None,
        typer.Option(help="max-min, balanced, equal-drift, or a floor such as 'a>=0.80'."),
    ] = None,
    points: Annotated[int, typer.Option(help="Most networks stored on the path.")] = 64,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    arch: Arch = None,
    normalisation: Normalisations = None,
    pt: Annotated[bool, typer.Option("--pt", help="Write merged.pt as well.")] = False,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False,
) -> None:
    """Walk from one network toward another and keep the point that does both tasks."""
    from geomerge.merging import MergeOptions
    from geomerge.runs import run_merge

    options = MergeOptions(
        manifold=tuple(manifold or ()),
        preset=preset,
        metric=metric,
        output=output,
        damping=damping,
        steps=steps,
        pick=pick,
        points=points,
        seed=seed,
        task_a=task_a,
        task_b=task_b,
        sketch_a=str(sketch_a) if sketch_a else None,
        sketch_b=str(sketch_b) if sketch_b else None,
        arch=arch,
        normalisation=tuple(normalisation or ()),
        data_root=data_root,
        download=download,
        device=device,
    )
    with progress_bar(quiet=as_json) as show:
        folder, report, before = run_merge(a, b, options, out=out, pt=pt, on_progress=show)
    if as_json:
        print(json.dumps(report, indent=1))
        return
    show_report(report)
    print(f"{folder} was finished before; nothing changed" if before else f"written to {folder}")


def show_report(report: dict[str, Any]) -> None:
    """Print a run's table, and what was kept with which data."""
    from rich.console import Console
    from rich.table import Table

    names = {s: report["networks"][s]["task"] or f"task of {s}" for s in ("a", "b")}
    table = Table(title="accuracy on the test splits, %")
    for heading in ("", f"{names['a']} (a)", f"{names['b']} (b)", "smaller"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in report["results"]:
        one, two = row["test"]
        smaller = None if one is None or two is None else min(one, two)
        style = "bold" if row["name"] == "crossover" else None
        table.add_row(row["name"], percent(one), percent(two), percent(smaller), style=style)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    at = report["crossover"]
    console.print(
        f"preset {report['preset']}; crossover at t = {at['t']:.3f} by {at['pick']}, "
        f"damping {at['damping']:g}, chosen among {len(report['candidates'])}"
    )
    for leg in report["legs"]:
        kept = leg["keeps_function_of"]
        console.print(
            f"walked from {leg['walked_from']} to {leg['to']}, keeping "
            + (f"the function of {kept}" if kept else "no function")
            + f": {leg['metric']}; length {leg['length']:.3g}"
        )
    for use in ("walk", "pick"):
        parts = [
            f"{d['inputs']} {d['task']} inputs of the {d['split']} split "
            + ("with labels" if d["labels"] else "without labels")
            for d in report["data"][use]
        ]
        console.print(f"data of the {use}: " + ("; ".join(parts) or "none"))
    for note in report["notes"]:
        console.print(f"note: {note}")
