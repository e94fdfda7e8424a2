"""``geomerge train``: training of a network for a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from geomerge.cli.console import percent, tell_finished, watched
from geomerge.cli.flags import Flags
from geomerge.cli.options import Force, LogJson, NetworkOut, Normalisation
from geomerge.data import Task, load_task, parse_normalisation
from geomerge.expert_options import ExpertOptions
from geomerge.io.checkpoint import SUFFIXES
from geomerge.io.files import check_output
from geomerge.networks.architectures import NAMED
from geomerge.options import option
from geomerge.training import TrainOptions, train_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from geomerge.monitor.progress import Progress

__all__ = ["train", "watch_training"]

_READ = ("data_root", "download", "device", "label_column", "image_size", "channels")


@dataclass(frozen=True)
class _NetworkOptions:
    arch: str = option(
        "mlp",
        "architecture: mlp, mlp:tanh, cnn, resnet18-cifar, ... (docs/networks.md) or "
        "module:factory",
        group="training", choices=NAMED, closed=False,
    )  # fmt: skip
    sketch: bool = option(True, "sketch of the network in its file", group="output")


def train(
    manifold: Annotated[
        str,
        typer.Option(
            help="task: mnist, fashion-mnist, cifar10, digits, ..., a folder of images, an .npz "
            "file or module:factory",
            rich_help_panel="data",
        ),
    ],
    out: NetworkOut,
    made: _NetworkOptions,
    options: Annotated[TrainOptions, Flags(without=("batch",))],
    data: Annotated[ExpertOptions, Flags(only=_READ)],
    normalisation: Normalisation = None,
    force: Force = False,
    log_json: LogJson = False,
) -> None:
    """Train a network for a task.

    5000 examples are held out from training as the selection split of later commands.
    """
    check_output(out, SUFFIXES, replace=force)
    arch, seed, device = made.arch, options.seed, data.device
    with watched(log_json, resumes=False) as show:
        task = load_task(
            manifold,
            data_root=data.data_root,
            download=data.download,
            normalisation=parse_normalisation(normalisation) if normalisation else None,
            device=device,
            files=data.reading.examples,
        )
        accuracies = train_checkpoint(
            out,
            arch,
            task,
            options,
            sketch=made.sketch,
            device=device,
            on_step=None if show is None else watch_training(show, arch, task, seed, device),
        )
    tell_finished(log_json, file=str(out))
    print(
        f"{out}: {arch} on {manifold}, accuracy {percent(accuracies['test'])} % on test, "
        f"{percent(accuracies['select'])} % on the selection split"
    )


def watch_training(
    show: Callable[[Progress], None], arch: str, task: Task, seed: int, device: str
) -> Callable[[int, int, Tensor], None]:
    """Return a function that shows the steps of a training and its accuracy at intervals.

    Args:
        show: Function that shows progress.
        arch: Architecture of the network.
        task: Task of the network.
        seed: Seed of the training.
        device: Device of the training.
    """
    from geomerge.evaluation.accuracy import accuracy
    from geomerge.merging.recording import EVERY, EXAMPLES
    from geomerge.monitor.progress import Progress
    from geomerge.networks.architectures import create_network
    from geomerge.networks.network import Network

    # A separate module, so that measurements do not affect the network in training.
    network = Network(create_network(arch, task.input_shape, task.classes, seed), device)
    name, classes = task.name, task.classes
    fitted = task.fitted(lambda x: network.check_inputs(network.initial, x, classes, name))
    few = fitted.select.first(EXAMPLES)
    found: dict[str, float] = {}

    def watch(step: int, steps: int, w: Tensor) -> None:
        nonlocal found
        if step % EVERY == 1:
            found = {task.name: accuracy(network, w, few)}
        show(Progress(f"training on {task.name}", step, steps, found))

    return watch
