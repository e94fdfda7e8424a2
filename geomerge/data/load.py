"""``"mnist"``, a folder, an ``.npz`` or ``module:factory`` -> train, select and test splits."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from geomerge.data import sources
from geomerge.data.classes import split_classes, take_classes
from geomerge.data.normalisation import (
    Normalisation,
)
from geomerge.data.task import Task, make_task
from geomerge.data.text import is_text_file
from geomerge.errors import TaskError, did_you_mean
from geomerge.networks.architectures import call_factory
from geomerge.networks.network import check_device

__all__ = ["load_task"]


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
        name: ``mnist``, ``rotated-mnist`` (a quarter turn), ``fashion-mnist``, ``cifar10``,
            ``digits``, ``digits-permuted``; or a folder of images by class; or an ``.npz`` file
            with ``x`` and ``y``; or ``module:factory``, a callable that returns a :class:`Task` or
            a mapping of arrays. ``NAME@0-4`` or ``NAME@1,3,5`` are only those classes of it,
            numbered from 0 on.
        data_root: Folder of the named data sets; default ``GEOMERGE_DATA``, else ``./data``.
        download: Whether torchvision may fetch a missing data set.
        normalisation: Instead of the usual one.
        device: Where batches go.

    Returns:
        The task with its selection split cut.

    Raises:
        TaskError: If the name is unknown or the data is missing, empty or damaged.
        OptionError: If there is no such device.

    Example:
        >>> import geomerge as gm
        >>> task = gm.load_task("digits")
        >>> task.classes, task.input_shape
        (10, (1, 8, 8))
        >>> [len(split.labels) for split in (task.train, task.select, task.test)]
        [1199, 299, 299]
        >>> gm.load_task("digits@0-4").classes
        5
    """
    check_device(device)
    root = Path(data_root or os.environ.get("GEOMERGE_DATA") or "data")
    whole, classes = split_classes(name)
    found = _read(whole, root, download)
    if isinstance(found, Task):
        if classes is not None:
            raise TaskError(
                f"{whole} makes a whole task, of which no classes can be taken; have it return "
                "arrays, or leave the classes out"
            )
        return found
    (train, test), select, names = found
    if whole in sources.NAMED:
        normalisation = normalisation or Normalisation(*sources.USUAL[whole])
    if classes is not None:
        train = take_classes(train, classes, name)
        test = take_classes(test, classes, name) if test is not None else None
        select = take_classes(select, classes, name) if select is not None else None
        names = [names[k] for k in classes] if names else []
    task = make_task(name, train, test, normalisation, device, select)
    return replace(task, class_names=tuple(names))


def _read(
    name: str, root: Path, download: bool
) -> tuple[sources.Data, sources.Pair | None, list[str]] | Task:
    """Return training and test examples, those for selection, and names of classes, if known."""
    path = Path(name)
    if is_text_file(name):
        raise TaskError(
            f"{name} is a table of texts, which the tokenizer of a Hugging Face folder makes "
            "numbers of; give the network as such a folder"
        )
    if name in sources.NAMED:
        return sources.NAMED[name](root, download), None, []
    if path.suffix == ".npz":
        return sources.from_npz(path), None, []
    if path.is_dir():
        return sources.from_folder(path)
    if ":" in name:
        made = call_factory(name)
        return made if isinstance(made, Task) else (sources.from_factory(made, name), None, [])
    raise TaskError(
        f"unknown task {name!r}, and no such folder{did_you_mean(name, sources.NAMED)} "
        "(or a folder of images, an .npz file, module:factory)"
    )
