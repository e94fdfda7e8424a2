"""``geomerge sparsify``: take weights or whole units away."""

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
    NetworkFile,
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

__all__ = ["sparsify"]


def sparsify(
    network: NetworkFile,
    manifold: Manifold = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the weights that goes, such as 0.95.")
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="The same share of every layer.")
    ] = False,
    nm: Annotated[
        str | None, typer.Option(help="2:4: two of any four neighbouring weights stay.")
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(help="LAYER:50 filters or neurons, LAYER:0.5 of them, or LAYER:1,2,5-9."),
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="Share of the FLOPs to save by removing units anywhere.")
    ] = None,
    params: Annotated[
        float | None, typer.Option(help="Share of the parameters to save so.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/NAME-HASH.")
    ] = None,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Write the physically smaller network as well.")
    ] = False,
    labels: Annotated[
        bool, typer.Option("--labels", help="Let a last leg use the task's labels.")
    ] = False,
    paths: Annotated[
        int, typer.Option(help="How many walks; the shortest of the best is kept.")
    ] = 1,
    walk: Annotated[
        str, typer.Option(help="prescribed, or pull: the soft pull of arXiv 2012.09605.")
    ] = "prescribed",
    metric: Annotated[str, typer.Option(help="kronecker or euclidean.")] = "kronecker",
    output: Output = "tempered",
    saliency: Annotated[
        str, typer.Option(help="Which weights go first: obs, obd or magnitude.")
    ] = "obs",
    choose: Choose = "greedy",
    budget: Annotated[
        float | None,
        typer.Option(help="How much worse any class may get (mean KL), with --choose rates."),
    ] = None,
    bn: Statistics = None,
    damping: Damping = None,
    learning_rate: Rate = None,
    steps: Annotated[int | None, typer.Option(help="How many of them; default 3600.")] = None,
    batch: Batch = 128,
    stages: Stages = 30,
    refresh: Refresh = 3,
    inputs: Inputs = None,
    mix: Mix = None,
    points: Points = 32,
    seed: Seed = 0,
    arch: Arch = None,
    normalisation: Normalisations = None,
    pt: Annotated[bool, typer.Option("--pt", help="Write sparse.pt as well.")] = False,
    torch_prune: Annotated[
        bool,
        typer.Option("--torch-prune", help="Write masks and weights as torch.nn.utils.prune does."),
    ] = False,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Remove weights or units and keep the function."""
    from geomerge.pruning.options import SparsifyOptions
    from geomerge.runs import run_sparsify

    options = SparsifyOptions(
        manifold=manifold,
        sparsity=sparsity,
        per_layer=per_layer,
        nm=nm,
        remove=tuple(remove or ()),
        flops=flops,
        params=params,
        walk=walk,
        metric=metric,
        output=output,
        saliency=saliency,
        choice=choose,
        budget=budget,
        bn=bn,
        damping=damping,
        learning_rate=learning_rate,
        steps=steps,
        batch=batch,
        stages=stages,
        refresh=refresh,
        inputs=inputs,
        mix=mix,
        labels=labels,
        paths=paths,
        points=points,
        seed=seed,
        arch=arch,
        normalisation=tuple(normalisation or ()),
        data_root=data_root,
        download=download,
        device=device,
    )
    with watched(log_json) as show:
        folder, report, before = run_sparsify(
            network,
            options,
            out=out,
            shrunk=shrink,
            pt=pt,
            torch_prune=torch_prune,
            on_progress=show,
        )
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
