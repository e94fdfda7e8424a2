"""Sources of tasks: named data sets, image folders, ``.npz`` files, ``module:factory``."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomerge.data.arrays import Examples, examples_in
from geomerge.data.images import IMAGES, LARGEST_IMAGE, RATIO, images_in, stack_images
from geomerge.errors import TaskError, first_line, type_of
from geomerge.io.containers import check_archive

__all__ = [
    "NAMED",
    "USUAL",
    "Pair",
    "files_of_folder",
    "from_factory",
    "from_folder",
    "stored_names",
]

Pair = tuple[Tensor, Tensor]  # inputs (N, ...), labels (N,)
Data = tuple[Pair, Pair | None]  # training, test

USUAL = {  # the field's usual normalisation: mean, deviation per channel
    "mnist": ((0.1307,), (0.3081,)),
    "rotated-mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "digits": ((0.3053,), (0.3761,)),
    "digits-permuted": ((0.3053,), (0.3761,)),
}
_VALIDATION = ("val", "valid", "validation")


def _mnist(kind: str, turns: int = 0) -> Callable[[Path, bool], Data]:
    def read(root: Path, download: bool) -> Data:
        from torchvision import datasets

        def part(train: bool) -> Pair:
            try:
                data = getattr(datasets, kind)(str(root), train=train, download=download)
            except Exception as error:  # missing, truncated, or out of reach
                raise _missing(kind, root, download, error) from error
            return torch.rot90(data.data.unsqueeze(1), turns, (2, 3)), data.targets

        return part(True), part(False)

    return read


def _cifar10(root: Path, download: bool) -> Data:
    for name in ("cifar10-images.zip", "cifar10.zip"):
        if (root / name).is_file():
            return _from_zip(root / name)
    for name in ("cifar10", "cifar10-images"):
        if (root / name / "train").is_dir():
            return from_folder(root / name)[:2]
    from torchvision import datasets

    def part(train: bool) -> Pair:
        try:
            # torchvision compares the files with known MD5 sums before it opens them.
            data = datasets.CIFAR10(str(root), train=train, download=download)
        except Exception as error:  # missing, truncated, or out of reach
            raise _missing("CIFAR10", root, download, error) from error
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)

    return part(True), part(False)


def _digits(permuted: bool) -> Callable[[Path, bool], Data]:
    def read(root: Path, download: bool) -> Data:
        table = _digits_table()
        x = torch.from_numpy(table[:, :-1].reshape(-1, 8, 8) / 16).float()
        target = torch.from_numpy(table[:, -1].astype(int))
        if permuted:
            order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
            x = x.flatten(1)[:, order].view(-1, 8, 8)
        return (x.unsqueeze(1), target), None

    return read


def _digits_table() -> np.ndarray[Any, Any]:
    """Return scikit-learn's digits, a row of 64 pixels and the class for each.

    The file is read without importing scikit-learn, which takes longer than all else in a command.
    """
    found = find_spec("sklearn")
    folder = Path(found.origin).parent if found is not None and found.origin else Path()
    try:
        with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as stream:
            return np.loadtxt(stream, delimiter=",")
    except OSError:  # another layout of the package
        from sklearn.datasets import load_digits

        data = load_digits()
        return np.column_stack([data.data, data.target])


NAMED: Mapping[str, Callable[[Path, bool], Data]] = {
    "mnist": _mnist("MNIST"),
    "rotated-mnist": _mnist("MNIST", turns=1),
    "fashion-mnist": _mnist("FashionMNIST"),
    "cifar10": _cifar10,
    "digits": _digits(permuted=False),
    "digits-permuted": _digits(permuted=True),
}


_STORED = {  # files of named data sets, any of which is enough
    "mnist": ("MNIST/raw",),
    "fashion-mnist": ("FashionMNIST/raw",),
    "cifar10": (
        "cifar10-images.zip", "cifar10.zip", "cifar10/train", "cifar10-images/train",
        "cifar-10-batches-py",
    ),
}  # fmt: skip


def stored_names(root: Path) -> list[str]:
    """Return the names of the data sets that a folder holds, without opening them."""
    names = {**_STORED, "rotated-mnist": _STORED["mnist"]}
    return [name for name, files in names.items() if any((root / f).exists() for f in files)]


def from_folder(folder: Path, size: int | None = None, channels: int | None = None) -> Examples:
    """Read images in ``folder/CLASS/*``, or in folders of splits of that form.

    Splits are ``train`` and ``test``. A ``val``, ``valid`` or ``validation`` is the test split of a
    folder without ``test``, as in ImageNet, and the selection split of one with it.

    Args:
        folder: The folder.
        size: Side in pixels to which images are resized.
        channels: Number of their channels.

    Returns:
        Training examples, test and selection examples where the folder has them, and the names of
        the classes by their numbers.
    """
    look = partial(_read_classes, size=size, channels=channels)
    first, *others = _splits(folder)
    train, classes = look(first)
    held = [look(part, classes)[0] for part in others]
    test, select = (*held, None, None)[:2]
    return train, test, select, classes


def files_of_folder(folder: Path) -> list[Path]:
    """Return the files of a folder that :func:`from_folder` reads, in order.

    Args:
        folder: The folder.

    Raises:
        OSError: If it cannot be listed.
    """
    parts = [part / name for part in _splits(folder) for name in _class_names(part)]
    return [file for part in parts for file in images_in(part)]


def _splits(folder: Path) -> list[Path]:
    """Return the folders of the splits, that of training first; without any, the folder."""
    train, *others = (folder / name for name in ("train", "test", *_VALIDATION))
    return [train, *filter(_has_classes, others)] if _has_classes(train) else [folder]


def _has_classes(folder: Path) -> bool:
    """Return whether a folder is a split: its images lie in folders, and not in itself."""
    return folder.is_dir() and bool(_class_names(folder))


def _class_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


def from_factory(made: Any, spec: str) -> Examples:
    """Take what a factory returned: a mapping of arrays with the names of an ``.npz``."""
    if not isinstance(made, Mapping):
        raise TaskError(
            f"{spec!r} returned {type_of(made)}, expected a Task or a mapping with x and "
            "y; return one"
        )
    return examples_in(made, spec)


def _read_classes(
    folder: Path,
    classes: list[str] | None = None,
    size: int | None = None,
    channels: int | None = None,
) -> tuple[Pair, list[str]]:
    try:
        classes = _known_classes(_class_names(folder), classes, str(folder))
        files = [(p, k) for k, c in enumerate(classes) for p in images_in(folder / c)]
    except OSError as error:
        raise TaskError(f"cannot list {folder} ({error.strerror}); check the path") from error
    items = ((p.read_bytes(), k, str(p)) for p, k in files)
    return stack_images(items, str(folder), size, channels), classes


def _known_classes(found: list[str], classes: list[str] | None, source: str) -> list[str]:
    """Return the classes in order: those of the training data, which the test may not exceed."""
    for name in found:
        if classes is not None and name not in classes:
            raise TaskError(
                f"{source} has a class {name!r} that the training data has not; remove or rename it"
            )
    return found if classes is None else classes


def _from_zip(file: Path) -> Data:
    """Read ``[train|test]/CLASS/image`` from a zip without unpacking it."""
    try:
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, max(LARGEST_IMAGE, RATIO * file.stat().st_size))

            def part(split: str, classes: list[str] | None) -> tuple[Pair, list[str]]:
                names = sorted(
                    i.filename
                    for i in archive.infolist()
                    if i.filename.startswith(split + "/")
                    and i.filename.lower().endswith(IMAGES)
                    and i.file_size < LARGEST_IMAGE
                )
                label = {n: n.split("/")[1] for n in names}
                source = f"{file} ({split})"
                classes = _known_classes(sorted(set(label.values())), classes, source)
                items = ((archive.read(n), classes.index(label[n]), n) for n in names)
                return stack_images(items, source), classes

            train, classes = part("train", None)
            return train, part("test", classes)[0]
    except TaskError:
        raise
    except Exception as error:  # zipfile raises many types
        raise TaskError(
            f"{file} is not a whole zip ({first_line(error)}); copy it again"
        ) from error


def _missing(kind: str, root: Path, download: bool, error: Exception) -> TaskError:
    if download:
        return TaskError(
            f"torchvision could not download {kind} into {root} ({first_line(error)}); check the "
            "network or copy the files there"
        )
    return TaskError(
        f"no {kind} under {root}; give its folder with `data_root` or GEOMERGE_DATA, or allow "
        "torchvision to fetch it with `download`"
    )
