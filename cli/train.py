"""``geomerge train``: make a network to merge."""

from __future__ import annotations

from pathlib import Path

import typer

from geomerge.cli.console import percent, progress_bar

__all__ = ["train"]


def train(
    manifold: str = typer.Option(
        ..., help="Task: mnist, fashion-mnist, cifar10, digits, a folder, an .npz, module:factory."
    ),
    out: Path = typer.Option(..., help="Where the network goes: .pt or .safetensors."),
    arch: str = typer.Option(
        "mlp", help="mlp, lenet-300-100, cnn, vgg11-cifar, or module:factory."
    ),
    epochs: float = typer.Option(8, min=0, help="Passes over the training data."),
    learning_rate: float = typer.Option(0.05, min=0, help="Of the first step."),
    seed: int = typer.Option(0, help="Of weights and of the order of examples."),
    sketch: bool = typer.Option(True, help="Keep a sketch of the metric inside the checkpoint."),
    normalisation: str | None = typer.Option(None, help="MEAN/STD instead of the usual one."),
    device: str = typer.Option("cpu", help="Where to compute."),
    data_root: str | None = typer.Option(None, help="Folder of data sets (GEOMERGE_DATA)."),
    download: bool = typer.Option(False, help="Let torchvision fetch a missing data set."),
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
                Progress(f"training on {manifold}", step, steps, None, None)
            ),
        )
    print(
        f"{out}: {arch} on {manifold}, accuracy {percent(accuracies['test'])} % on test, "
        f"{percent(accuracies['select'])} % on the selection split"
    )
