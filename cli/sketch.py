"""``geomerge sketch``: measure and keep the metric of a network on its task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.options import (
    Arch,
    DataRoot,
    Device,
    Download,
    NetworkFile,
    Normalisation,
    Output,
)

__all__ = ["sketch"]


def sketch(
    network: NetworkFile,
    manifold: Annotated[str, typer.Option(help="Its task; labels are not used.")],
    out: Annotated[Path, typer.Option(help="Where the sketch goes: .safetensors.")],
    output: Output = "hellinger",
    inputs: Annotated[int, typer.Option(help="How many inputs to measure on.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Chooses the inputs.")] = 0,
    arch: Arch = None,
    normalisation: Normalisation = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Measure a network's metric, for merges without its data."""
    from geomerge.data import parse_normalisation
    from geomerge.evaluation.files import open_network, task_for
    from geomerge.io.files import check_output
    from geomerge.metrics import make_sketch, save_sketch
    from geomerge.metrics.sketch import SUFFIXES

    check_output(out, SUFFIXES)
    checkpoint, net = open_network(network, arch, device)
    numbers = parse_normalisation(normalisation) if normalisation else None
    task = task_for(checkpoint, net, manifold, numbers, data_root, download)
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
