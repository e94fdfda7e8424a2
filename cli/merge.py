"""``geomerge merge``: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from geomerge.cli.console import percent, progress_bar

__all__ = ["merge", "show_report"]


def merge(
    a: Path = typer.Argument(..., help="Network a, where the path starts."),
    b: Path = typer.Argument(..., help="Network b, where it ends."),
    manifold: list[str] = typer.Option(
        [], help="Task whose inputs the walk may use; a=NAME and b=NAME say whose it is."
    ),
    out: Path | None = typer.Option(None, help="Folder of the run; default runs/A-B-HASH."),
    sketch_a: Path | None = typer.Option(None, help="File with a's sketch."),
    sketch_b: Path | None = typer.Option(None, help="File with b's sketch."),
    task_a: str | None = typer.Option(None, help="Task of a, to choose and report on."),
    task_b: str | None = typer.Option(None, help="Task of b, to choose and report on."),
    preset: str | None = typer.Option(None, help="sketch or paper; default what the data allows."),
    metric: str = typer.Option("kronecker", help="kronecker or euclidean."),
    output: str = typer.Option("hellinger", help="What the metric measures: hellinger, logits."),
    damping: float | None = typer.Option(None, help="mu; default several, the best is kept."),
    steps: int | None = typer.Option(None, help="Steps of each walk."),
    pick: str | None = typer.Option(
        None, help="max-min, balanced, equal-drift, or a floor such as 'a>=0.80'."
    ),
    points: int = typer.Option(64, help="Most networks stored on the path."),
    seed: int = typer.Option(0, help="Of everything drawn."),
    arch: str | None = typer.Option(None, help="Architecture, where the files do not say."),
    normalisation: list[str] = typer.Option([], help="TASK=MEAN/STD instead of the usual one."),
    pt: bool = typer.Option(False, "--pt", help="Write merged.pt as well."),
    device: str = typer.Option("cpu", help="Where to compute."),
    data_root: str | None = typer.Option(None, help="Folder of data sets (GEOMERGE_DATA)."),
    download: bool = typer.Option(False, help="Let torchvision fetch a missing data set."),
    as_json: bool = typer.Option(False, "--json", help="Print report.json."),
) -> None:
    """Walk from one network toward another and keep the point that does both tasks."""
    from geomerge.merging import MergeOptions
    from geomerge.runs import run_merge

    options = MergeOptions(
        manifold=tuple(manifold),
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
        normalisation=tuple(normalisation),
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
        console.print(
            f"walked from {leg['walked_from']} to {leg['to']}, keeping the function of "
            f"{leg['keeps_function_of']}: {leg['metric']}; length {leg['length']:.3g}"
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
