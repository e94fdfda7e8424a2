"""A file and task names -> accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomerge.data import (
    Normalisation,
    Task,
    check_normalised,
    load_task,
    recorded_normalisation,
    split_normalisations,
)
from geomerge.errors import OptionError
from geomerge.evaluation.accuracy import accuracy
from geomerge.io.checkpoint import Checkpoint, load_checkpoint
from geomerge.networks.architectures import rebuild_network, recognise
from geomerge.networks.network import Network

__all__ = ["evaluate_file", "head_for", "open_network", "task_for"]


def open_network(
    file: str | Path, arch: str | None = None, device: str = "cpu"
) -> tuple[Checkpoint, Network]:
    """Read a checkpoint and rebuild its network."""
    checkpoint = load_checkpoint(file)
    architecture = arch or checkpoint.meta.get("architecture")
    module = rebuild_network(checkpoint.weights, architecture, checkpoint.source)
    return checkpoint, Network(module, device)


def task_for(
    checkpoint: Checkpoint,
    network: Network,
    name: str,
    normalisation: Normalisation | None = None,
    data_root: str | None = None,
    download: bool = False,
) -> Task:
    """Load a task that a network can take, normalised as given or as the checkpoint recorded."""
    task = load_task(
        name,
        data_root=data_root,
        download=download,
        normalisation=normalisation or recorded_normalisation(checkpoint.meta, name),
        device=str(network.device),
    )
    task = task.shifted(_place(checkpoint, name)[1])
    x = task.train.inputs.batch(slice(0, 4))
    network.check_inputs(network.initial, x, task.classes, task.name)
    return task


def head_for(checkpoint: Checkpoint, network: Network, name: str) -> Network:
    """Return the network as a task sees it: its own block of a merged network's outputs."""
    return network.head_view(_place(checkpoint, name)[0])


def _place(checkpoint: Checkpoint, name: str) -> tuple[slice, int]:
    """Return which outputs are a task's, and what its class numbers start at."""
    known = checkpoint.meta.get("head", {}).get("tasks", {}).get(name)
    if known is None:
        return slice(None), 0
    return slice(*known["outputs"]) if known["outputs"] else slice(None), known["offset"]


def evaluate_file(
    file: str | Path,
    tasks: Sequence[str],
    *,
    split: str = "test",
    arch: str | None = None,
    normalisation: Sequence[str] = (),
    data_root: str | None = None,
    download: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure a network on tasks.

    Args:
        file: The network.
        tasks: Names of tasks.
        split: ``"test"`` or ``"select"``.
        arch: Architecture, where the file does not say.
        normalisation: ``TASK=MEAN/STD`` texts.
        data_root: Folder of the named data sets.
        download: Whether torchvision may fetch them.
        device: Where to compute.

    Returns:
        The file's digest and architecture, and for each task the accuracy in [0, 1] and the
        number of examples.

    Raises:
        GeomergeError: If the file, a task or an option is wrong.
    """
    if split not in ("test", "select"):
        raise OptionError(f"unknown split {split!r}; expected test or select, say one")
    own = split_normalisations(normalisation)
    check_normalised(own, tasks, "measured")
    checkpoint, network = open_network(file, arch, device)
    rows = []
    for name in tasks:
        own_head = head_for(checkpoint, network, name)
        task = task_for(checkpoint, own_head, name, own.get(name), data_root, download)
        part = task.test if split == "test" else task.select
        rows.append(
            {
                "task": name,
                "split": split,
                "examples": len(part.labels),
                "accuracy": accuracy(own_head, network.initial, part),
            }
        )
    return {
        "file": Path(file).name,
        "sha256": checkpoint.digest,
        "architecture": arch or checkpoint.meta.get("architecture"),
        "recognised": recognise(checkpoint.weights),
        "head": checkpoint.meta.get("head", {}).get("protocol", "shared"),
        "tasks": rows,
    }
