"""Tasks by name, of data sets, folders, files of arrays, tables and factories; and of objects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from geomerge.data import sources
from geomerge.data.arrays import Examples, examples_in
from geomerge.data.classes import split_classes, take_classes
from geomerge.data.images import resized
from geomerge.data.inputs import unlabelled_inputs
from geomerge.data.normalisation import Normalisation
from geomerge.data.task import Task, make_task
from geomerge.data.tensor_files import arrays_of_file, arrays_of_table
from geomerge.data.text import PLAIN_TEXT, ExampleOptions, is_text_file
from geomerge.errors import NoLabelsError, TaskError, did_you_mean, type_of
from geomerge.networks.architectures import call_factory
from geomerge.networks.network import check_device

__all__ = ["load_task", "task_of"]


def load_task(
    name: str | Task | Iterable[Any] | Callable[[], Any],
    *,
    data_root: str | Path | None = None,
    download: bool = False,
    normalisation: Normalisation | None = None,
    device: str = "cpu",
    files: ExampleOptions | None = None,
) -> Task:
    """Load a task by name.

    Args:
        name: ``mnist``, ``rotated-mnist`` (a quarter turn), ``fashion-mnist``, ``cifar10``,
            ``digits``, ``digits-permuted``; or a folder of images by class; or a file of arrays
            ``x`` and ``y`` (``.npz``, or ``.pt`` with a tuple, a mapping or a ``TensorDataset``);
            or a table of numbers with column names (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``);
            or ``module:factory``, a callable that returns a :class:`Task` or a mapping of arrays.
            Files are recognised by their content. ``NAME@0-4`` or ``NAME@1,3,5`` are only those
            classes of it, numbered from 0 on. Objects are taken as well: a :class:`Task`, a
            ``Dataset``, a ``DataLoader`` or other batches with labels, or such a callable itself.
        data_root: Folder of the named data sets; default ``GEOMERGE_DATA``, else ``./data``.
        download: Whether torchvision may fetch a missing data set.
        normalisation: Instead of the usual one.
        device: Device of the batches.
        files: Columns of tables, size and channels of images; None takes them as they are.

    Returns:
        The task with its selection split cut.

    Raises:
        TaskError: If the name is unknown or the data is missing, empty or damaged.
        NoLabelsError: If a file has inputs and no labels.
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
    if not isinstance(name, str):
        return task_of(name, normalisation, device)
    root = Path(data_root or os.environ.get("GEOMERGE_DATA") or "data")
    whole, classes = split_classes(name)
    files = files or ExampleOptions()
    try:
        found = _read(whole, root, download, files)
    except NoLabelsError as error:
        x = resized(error.inputs, files.image_size, files.channels, name)
        inputs = unlabelled_inputs(x, name, device, normalisation)
        raise NoLabelsError(str(error), inputs) from error
    if isinstance(found, Task):
        if classes is not None:
            raise TaskError(
                f"{whole} makes a whole task, of which no classes can be taken; have it return "
                "arrays, or leave the classes out"
            )
        return found
    train, test, select, names = found
    if whole in sources.NAMED:
        normalisation = normalisation or Normalisation(*sources.USUAL[whole])
    if classes is not None:
        train = take_classes(train, classes, name)
        test = take_classes(test, classes, name) if test is not None else None
        select = take_classes(select, classes, name) if select is not None else None
        names = [names[k] for k in classes] if names else []
    task = make_task(name, train, test, normalisation, device, select)
    return replace(task, class_names=tuple(names))


def task_of(thing: Any, normalisation: Normalisation | None = None, device: str = "cpu") -> Task:
    """Return a task made from a task, a dataset, batches or a callable.

    Args:
        thing: A :class:`Task`, a ``Dataset``, a ``DataLoader`` or another iterable of batches with
            labels, or a callable that returns a task or a mapping of arrays.
        normalisation: Normalisation instead of the usual one, where it is no task already.
        device: Device of the batches.

    Raises:
        TaskError: If it is nothing of these, or its data cannot be used.
    """
    if isinstance(thing, Task):
        return thing
    name = getattr(thing, "__name__", type(thing).__name__)
    if isinstance(thing, Dataset) and not isinstance(thing, IterableDataset):
        return Task.from_dataset(thing, name=name, normalisation=normalisation, device=device)
    if callable(thing):
        made = thing()
        if isinstance(made, Task):
            return made
        train, test, select, names = sources.from_factory(made, name)
        task = make_task(name, train, test, normalisation, device, select)
        return replace(task, class_names=tuple(names))
    if isinstance(thing, Iterable) and not isinstance(thing, (str, bytes, Mapping, Tensor)):
        return Task.from_loader(thing, name=name, normalisation=normalisation, device=device)
    raise TaskError(
        f"expected the name of a task, a Task, a Dataset, a DataLoader or a callable, got "
        f"{type_of(thing)}; make one with Task.from_tensors"
    )


def _read(name: str, root: Path, download: bool, files: ExampleOptions) -> Examples | Task:
    """Return training, test and selection examples and names of classes, as far as there are some.

    A file is recognised by its content.
    """
    path = Path(name)
    if name in sources.NAMED:
        train, test = sources.NAMED[name](root, download)
        found: Examples = (train, test, None, [])
    elif path.is_dir():
        return sources.from_folder(path, files.image_size, files.channels)
    elif path.suffix.lower() == PLAIN_TEXT:
        raise TaskError(
            f"{name} is plain text, which only the tokenizer of a language model's folder makes "
            "tokens of; name such a folder as the network"
        )
    elif is_text_file(name):
        found = examples_in(arrays_of_table(path, files), name)
    elif path.is_file() or path.suffix == ".npz":
        found = examples_in(arrays_of_file(path), name)
    elif ":" in name:
        made = call_factory(name)
        if isinstance(made, Task):
            return made
        found = sources.from_factory(made, name)
    else:
        raise TaskError(
            f"unknown task {name!r}, and no such file or folder{did_you_mean(name, sources.NAMED)} "
            "(or a folder of images, a file of data, module:factory)"
        )
    return _resized(found, files, name)


def _resized(found: Examples, files: ExampleOptions, name: str) -> Examples:
    train, test, select = (
        None
        if pair is None
        else (resized(pair[0], files.image_size, files.channels, name), pair[1])
        for pair in found[:3]
    )
    assert train is not None
    return train, test, select, found[3]
