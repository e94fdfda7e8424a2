"""A task: inputs with labels in three splits, each with its one purpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.data.normalisation import PLAIN, Normalisation
from geomerge.errors import TaskError

__all__ = ["Inputs", "Split", "Task", "as_they_are", "make_task"]

SELECTION_SIZE = 5000
SELECTION_SEED = 0  # fixed: every command must cut the same examples


@dataclass(frozen=True)
class Inputs:
    """Inputs without labels, in a fixed order.

    Attributes:
        raw: ``uint8`` pixels or floats, shape (N, ...).
        normalisation: Applied when a batch is taken; bytes are divided by 255 first.
        device: Where batches go.
        name: Name of the task that they are of, for reports; empty if they are of none.
    """

    raw: Tensor
    normalisation: Normalisation
    device: str = "cpu"
    name: str = ""

    def __len__(self) -> int:
        """Return the number of inputs N."""
        return len(self.raw)

    def batch(self, index: Tensor | slice) -> Tensor:  # (B, ...)
        """Return normalised inputs as float32 on the device; integers, tokens, as they are."""
        x = self.raw[index].to(self.device)
        if not x.is_floating_point() and x.dtype != torch.uint8:
            return x
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        if self.normalisation == PLAIN:
            return x.clone() if isinstance(index, slice) else x  # a slice is no copy yet
        shape = (-1,) + (1,) * max(x.dim() - 2, 0)
        mean = torch.tensor(self.normalisation.mean, device=x.device).view(shape)
        std = torch.tensor(self.normalisation.std, device=x.device).view(shape)
        return (x - mean).div_(std)

    def batches(self, size: int = 1000) -> Iterator[Tensor]:
        """Yield all inputs in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def sample(self, count: int, seed: int) -> Inputs:
        """Return at most ``count`` inputs, drawn without replacement."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(self), generator=generator)[:count]
        return replace(self, raw=self.raw[index])


def as_they_are(x: Tensor, device: str | torch.device = "cpu") -> Inputs:
    """Return inputs that need no normalisation, shape (N, ...)."""
    return Inputs(x, PLAIN, str(device))


@dataclass(frozen=True)
class Split:
    """Inputs and their labels, shape (N,)."""

    inputs: Inputs
    labels: Tensor

    def first(self, count: int) -> Split:
        """Return only the first examples, at most ``count``."""
        few = replace(self.inputs, raw=self.inputs.raw[:count])
        return Split(few, self.labels[:count])


@dataclass(frozen=True)
class Task:
    """What a network was, or is to be, trained for.

    Attributes:
        name: The name, path or ``module:factory`` that it was loaded by.
        train: For training, and without labels as the manifold that a walk keeps.
        select: Cut from the training data; every choice is made on it.
        test: For the numbers that are reported, never for a choice.
        classes: Number of classes of the labels.
        input_shape: Shape of one input.
    """

    name: str
    train: Split
    select: Split
    test: Split
    classes: int
    input_shape: tuple[int, ...]

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of all its inputs."""
        return self.train.inputs.normalisation

    def shifted(self, offset: int) -> Task:
        """Return the task with its classes numbered from ``offset`` on."""
        train, select, test = (
            Split(s.inputs, s.labels + offset) for s in (self.train, self.select, self.test)
        )
        return Task(self.name, train, select, test, self.classes + offset, self.input_shape)


def make_task(
    name: str,
    train: tuple[Tensor, Tensor],  # (N, ...), (N,)
    test: tuple[Tensor, Tensor] | None,
    normalisation: Normalisation | None,
    device: str = "cpu",
) -> Task:
    """Cut a selection split from training data and put a task together.

    Args:
        name: Name for reports.
        train: Inputs (bytes or floats) and integer labels.
        test: The same for the test split; without it a sixth of ``train`` is cut off first.
        normalisation: Per channel; None measures it on the training split of byte images and
            leaves floats as they are.
        device: Where batches go.

    Returns:
        The task; the selection split holds 5000 examples, or a fifth of fewer than 25 000.

    Raises:
        TaskError: If there are too few examples, or inputs and labels do not fit together.

    Example:
        >>> import torch
        >>> from geomerge.data import make_task
        >>> x, y = torch.randn(120, 5), torch.arange(120) % 3
        >>> task = make_task("mine", (x, y), test=None, normalisation=None)
        >>> [len(split.labels) for split in (task.train, task.select, task.test)]
        [80, 20, 20]
    """
    for what, (x, y) in (("training", train), *((("test", test),) if test else ())):
        if len(x) != len(y):
            raise TaskError(
                f"{name} has {len(x)} {what} inputs and {len(y)} labels, expected as many of "
                "each; check the data"
            )
        if len(x) < 10:
            raise TaskError(
                f"{name} has {len(x)} {what} examples, expected at least 10; check the data"
            )
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise TaskError(f"the {what} inputs of {name} are not all finite; clean the data")
        if y.dim() != 1 or y.is_floating_point() or int(y.min()) < 0:
            raise TaskError(
                f"the {what} labels of {name} are not one class number from 0 on for each "
                f"input (type {y.dtype}, shape {tuple(y.shape)}); convert them"
            )
    if test is None:
        train, test = _cut(train, len(train[0]) // 6, SELECTION_SEED + 1)
    rest, select = _cut(train, min(SELECTION_SIZE, len(train[0]) // 5), SELECTION_SEED)
    if normalisation is None:
        normalisation = _measure(rest[0])
    channels = rest[0].shape[1] if rest[0].dim() > 2 else 1
    for numbers in (normalisation.mean, normalisation.std):
        if len(numbers) not in (1, channels):
            raise TaskError(
                f"the normalisation of {name} has {len(numbers)} numbers, expected 1 or "
                f"{channels}, one per channel; correct it"
            )
    if any(s <= 0 for s in normalisation.std):
        raise TaskError(f"the normalisation of {name} has a deviation that is not positive")
    splits = [
        Split(Inputs(x, normalisation, device, name), y.long().to(device))
        for x, y in (rest, select, test)
    ]
    classes = int(torch.cat([train[1], test[1]]).max()) + 1
    return Task(name, splits[0], splits[1], splits[2], classes, tuple(rest[0].shape[1:]))


def _cut(
    data: tuple[Tensor, Tensor], count: int, seed: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))
    cut, kept = order[:count], order[count:]
    return (data[0][kept], data[1][kept]), (data[0][cut], data[1][cut])


def _measure(x: Tensor) -> Normalisation:
    if x.dtype != torch.uint8:
        return PLAIN
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(1)
    parts = flat.transpose(0, 1).flatten(1).double() / 255
    mean = [round(float(part.mean()), 4) for part in parts]
    std = [max(round(float(part.std()), 4), 1e-4) for part in parts]
    return Normalisation(tuple(mean), tuple(std))
