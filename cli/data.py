"""``geomerge sketch``, ``evaluate`` and ``path``: one network in, one thing about it out."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from geomerge.cli.console import percent

__all__ = ["evaluate", "path", "sketch"]


def sketch(
    network: Path = typer.Argument(..., help="The network."),
    manifold: str = typer.Option(..., help="Its task; labels are not used."),
    out: Path = typer.Option(..., help="Where the sketch goes: .safetensors."),
    output: str = typer.Option("hellinger", help="What the metric measures: hellinger, logits."),
    inputs: int = typer.Option(10_000, min=1, help="How many inputs to measure on."),
    seed: int = typer.Option(0, help="Chooses the inputs."),
    arch: str | None = typer.Option(None, help="Architecture, where the file does not say."),
    normalisation: str | None = typer.Option(None, help="MEAN/STD instead of the usual one."),
    device: str = typer.Option("cpu", help="Where to compute."),
    data_root: str | None = typer.Option(None, help="Folder of data sets (GEOMERGE_DATA)."),
    download: bool = typer.Option(False, help="Let torchvision fetch a missing data set."),
) -> None:
    """Measure the metric of a network on its task, so that a merge needs none of its data."""
    from geomerge.evaluation import open_network, task_for
    from geomerge.metric import make_sketch, save_sketch
    from geomerge.tasks import parse_normalisation

    checkpoint, net = open_network(network, arch, device)
    numbers = parse_normalisation(normalisation) if normalisation else None
    task = task_for(checkpoint, manifold, numbers, data_root, download, device)
    net.check_inputs(
        net.initial, task.train.inputs.batch(slice(0, 4)), task.classes, task.name
    )
    made = make_sketch(
        net, net.initial, task.train.inputs, manifold, output=output, count=inputs, seed=seed
    )
    save_sketch(out, made)
    size = sum(t.numel() for t in made.tensors().values())
    print(f"{out}: {made.meta['inputs']} inputs of {manifold}, {size / net.n:.2f} x the weights")
    for name, kept in made.meta["kept"].items():
        if kept < 1:
            print(f"  {name}: truncated, {100 * kept:.2f} % of its trace kept exactly")
    if made.meta["diagonal"]:
        print("  diagonal only: " + ", ".join(made.meta["diagonal"]))


def evaluate(
    network: Path = typer.Argument(..., help="The network."),
    manifold: list[str] = typer.Option(..., help="Task to measure on; may be given again."),
    split: str = typer.Option("test", help="test or select."),
    arch: str | None = typer.Option(None, help="Architecture, where the file does not say."),
    normalisation: list[str] = typer.Option([], help="TASK=MEAN/STD instead of the usual one."),
    device: str = typer.Option("cpu", help="Where to compute."),
    data_root: str | None = typer.Option(None, help="Folder of data sets (GEOMERGE_DATA)."),
    download: bool = typer.Option(False, help="Let torchvision fetch a missing data set."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Measure the accuracy of a network on tasks."""
    from geomerge.evaluation import evaluate_file

    found = evaluate_file(
        network,
        manifold,
        split=split,
        arch=arch,
        normalisation=normalisation,
        data_root=data_root,
        download=download,
        device=device,
    )
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for row in found["tasks"]:
        print(
            f"{row['task']}: {percent(row['accuracy'])} % of {row['examples']} "
            f"{row['split']} examples"
        )


def path(
    run: Path = typer.Argument(..., help="Folder of a finished run."),
    at: float = typer.Option(..., help="Where: 0 is a, 1 is b."),
    out: Path = typer.Option(..., help="Where the network goes: .pt or .safetensors."),
) -> None:
    """Take any network off a path, without walking again."""
    from geomerge.checkpoint import save_checkpoint
    from geomerge.path import WeightPath

    save_checkpoint(out, WeightPath(run / "path").checkpoint(at))
    print(f"{out}: the network at t = {at:g}")
