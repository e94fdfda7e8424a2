"""``"mnist"``, a folder, an ``.npz`` or ``module:factory`` -> train, select and test splits."""

from __future__ import annotations

import os
from pathlib import Path

from geomerge.architectures import call_factory
from geomerge.errors import TaskError, did_you_mean
from geomerge.network import check_device
from geomerge.tasks import sources
from geomerge.tasks.task import (
    Inputs,
    Normalisation,
    Split,
    Task,
    make_task,
    parse_normalisation,
    recorded_normalisation,
    split_normalisations,
)

__all__ = [
    "Inputs",
    "Normalisation",
    "Split",
    "Task",
    "load_task",
    "make_task",
    "parse_normalisation",
    "recorded_normalisation",
    "split_normalisations",
]


def load_task(
    name: str,
    *,
    data_root: str | Path | None = None,
    download: bool = False,
    normalisation: Normalisation | None = None,
    device: str = "cpu",
) -> Task:
    """Load a task by name.

    Args:
        name: ``mnist``, ``fashion-mnist``, ``cifar10``, ``digits``, ``digits-permuted``; or a
            folder of images by class; or an ``.npz`` file with ``x`` and ``y``; or
            ``module:factory``, a callable that returns a :class:`Task` or a mapping of arrays.
        data_root: Folder of the named data sets; default ``GEOMERGE_DATA``, else ``./data``.
        download: Whether torchvision may fetch a missing data set.
        normalisation: Instead of the usual one.
        device: Where batches go.

    Returns:
        The task with its selection split cut.

    Raises:
        TaskError: If the name is unknown or the data is missing, empty or damaged.
        OptionError: If there is no such device.
    """
    check_device(device)
    root = Path(data_root or os.environ.get("GEOMERGE_DATA") or "data")
    path = Path(name)
    if name in sources.NAMED:
        train, test = sources.NAMED[name](root, download)
        normalisation = normalisation or Normalisation(*sources.USUAL[name])
    elif path.suffix == ".npz":
        train, test = sources.from_npz(path)
    elif path.is_dir():
        train, test = sources.from_folder(path)
    elif ":" in name:
        made = call_factory(name)
        if isinstance(made, Task):
            return made
        train, test = sources.from_factory(made, name)
    else:
        raise TaskError(
            f"unknown task {name!r}, and no such folder{did_you_mean(name, sources.NAMED)} "
            "(or a folder of images, an .npz file, module:factory)"
        )
    return make_task(name, train, test, normalisation, device)
