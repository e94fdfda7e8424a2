"""``geomerge train``: make a network to merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from geomerge.cli.console import percent, tell_finished, watched
from geomerge.cli.options import DataRoot, Device, Download, LogJson, NetworkOut, Normalisation

if TYPE_CHECKING:
    from torch import Tensor

    from geomerge.data import Task
    from geomerge.monitor.progress import Progress

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
    epochs: Annotated[float, typer.Option(help="Passes over the training data.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Of the first step.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of weights and of the order of examples.")] = 0,
    sketch: Annotated[bool, typer.Option(help="Keep a sketch inside the checkpoint.")] = True,
    normalisation: Normalisation = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    log_json: LogJson = False,
) -> None:
    """Train a network for a task."""
    from geomerge.data import load_task, parse_normalisation
    from geomerge.training import train_checkpoint

    task = load_task(
        manifold,
        data_root=data_root,
        download=download,
        normalisation=parse_normalisation(normalisation) if normalisation else None,
        device=device,
    )
    with watched(log_json, resumes=False) as show:
        accuracies = train_checkpoint(
            out,
            arch,
            task,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
            sketch=sketch,
            device=device,
            on_step=None if show is None else _watcher(show, arch, task, seed, device),
        )
    tell_finished(log_json, file=str(out))
    print(
        f"{out}: {arch} on {manifold}, accuracy {percent(accuracies['test'])} % on test, "
        f"{percent(accuracies['select'])} % on the selection split"
    )


def _watcher(
    show: Callable[[Progress], None], arch: str, task: Task, seed: int, device: str
) -> Callable[[int, int, Tensor], None]:
    """Return what shows each step of a training, with the accuracy now and then."""
    from geomerge.evaluation.accuracy import accuracy
    from geomerge.merging.monitor import EVERY, EXAMPLES
    from geomerge.monitor.progress import Progress
    from geomerge.networks.architectures import create_network
    from geomerge.networks.network import Network

    # One of its own: what is measured here must not touch the network in training.
    network = Network(create_network(arch, task.input_shape, task.classes, seed), device)
    few = task.select.first(EXAMPLES)
    found: dict[str, float] = {}

    def watch(step: int, steps: int, w: Tensor) -> None:
        nonlocal found
        if step % EVERY == 1:
            found = {task.name: accuracy(network, w, few)}
        show(Progress(f"training on {task.name}", step, steps, found))

    return watch
