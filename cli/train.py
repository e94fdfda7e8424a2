"""``geomerge train``: make a network to merge."""

from __future__ import annotations

from typing import Annotated

import typer

from geomerge.cli.console import percent, progress_bar
from geomerge.cli.options import DataRoot, Device, Download, NetworkOut, Normalisation

__all__ = ["train"]


def train(
    manifold: Annotated[
        str,
        typer.Option(
            help="Task: mnist, fashion-mnist, cifar10, digits, a folder, an .npz, module:factory."
        ),
    ],
    out: NetworkOut,
    arch: Annotated[
        str,
        typer.Option(help="mlp, cnn, resnet18-cifar, ... (docs/networks.md), or module:factory."),
    ] = "mlp",
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the training data.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of the first step.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of weights and of the order of examples.")] = 0,
    sketch: Annotated[bool, typer.Option(help="Keep a sketch inside the checkpoint.")] = True,
    normalisation: Normalisation = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Train a network for a task; 5000 examples are left out for later choices."""
    from geomerge.merging.monitor import Progress
    from geomerge.tasks import load_task, parse_normalisation
    from geomerge.training import train_checkpoint

    task = load_task(
        manifold,
        data_root=data_root,
        download=download,
        normalisation=parse_normalisation(normalisation) if normalisation else None,
        device=device,
    )
    with progress_bar(quiet=False) as show:
        accuracies = train_checkpoint(
            out,
            arch,
            task,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
            sketch=sketch,
            device=device,
            on_step=lambda step, steps, _: show(
                Progress(f"training on {manifold}", step, steps, {})
            ),
        )
    print(
        f"{out}: {arch} on {manifold}, accuracy {percent(accuracies['test'])} % on test, "
        f"{percent(accuracies['select'])} % on the selection split"
    )
