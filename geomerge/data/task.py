"""Tasks: labelled examples in a training, a selection and a test split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geomerge.data.collect import Examples, class_names_of, collect, examples_of, in_batches
from geomerge.data.normalisation import PLAIN, Normalisation
from geomerge.errors import TaskError
from geomerge.networks.batches import (
    MASK,
    Batch,
    Shape,
    batch_size,
    leaves,
    map_leaves,
    shape_of,
    take,
    trimmed,
)
from geomerge.networks.network import inputs_at_once

__all__ = ["Inputs", "Split", "Task", "as_they_are", "make_task"]

SELECTION_SIZE = 5000
SELECTION_SEED = 0  # fixed: every command must cut the same examples
_LEAST = 10  # examples of a task


@dataclass(frozen=True)
class Inputs:
    """Unlabelled inputs in a fixed order.

    Attributes:
        raw: One tensor, a tuple of tensors, or a dictionary of tensors, with the N inputs along
            their first dimension: ``uint8`` pixels, floats, or integers such as tokens.
        normalisation: Normalisation of batches of one tensor; bytes are divided by 255 first.
        device: Device of the batches.
        name: Name of the task that the inputs are of, for reports; empty without a task.
        dtype: Type of floating inputs in a batch.
    """

    raw: Batch
    normalisation: Normalisation
    device: str = "cpu"
    name: str = ""
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        """Return the number of inputs N."""
        return batch_size(self.raw)

    @property
    def shape(self) -> Shape:
        """Shape of one input, see :data:`~geomerge.networks.batches.Shape`."""
        return shape_of(self.raw)

    @property
    def nbytes(self) -> int:
        """Bytes of the raw tensors."""
        return sum(leaf.nbytes for leaf in leaves(self.raw))

    @property
    def continuous(self) -> bool:
        """Whether all inputs are floats or pixels, so that two of them can be mixed."""
        return all(x.is_floating_point() or x.dtype == torch.uint8 for x in leaves(self.raw))

    def of_dtype(self, dtype: torch.dtype) -> Inputs:
        """Return the same inputs with floating batches of another type."""
        return self if dtype == self.dtype else replace(self, dtype=dtype)

    def batch(self, index: Tensor | slice) -> Batch:  # (B, ...)
        """Return normalised inputs on the device; integers and booleans as they are.

        Of texts, columns that are padding in the whole batch are left out.
        """
        return trimmed(map_leaves(lambda raw: self._normalised(raw, index), self.raw))

    def _normalised(self, raw: Tensor, index: Tensor | slice) -> Tensor:
        x = raw[index].to(self.device)
        if not x.is_floating_point() and x.dtype != torch.uint8:
            return x
        x = x.to(self.dtype).div_(255) if x.dtype == torch.uint8 else x.to(self.dtype)
        if self.normalisation == PLAIN:
            return x.clone() if isinstance(index, slice) else x  # a slice is no copy yet
        shape = (-1,) + (1,) * max(x.dim() - 2, 0)
        mean = x.new_tensor(self.normalisation.mean).view(shape)
        std = x.new_tensor(self.normalisation.std).view(shape)
        return (x - mean).div_(std)

    def batches(self, size: int = 1000) -> Iterator[Batch]:
        """Yield all inputs in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def equal_batches(self, size: int = 1000) -> Iterator[Batch]:
        """Yield all inputs in batches in which texts are equally long, so that none is padded.

        Inputs that are no texts are yielded as by :meth:`batches`.
        """
        lengths = self._lengths()
        if lengths is None:
            yield from self.batches(size)
            return
        for length in lengths.unique().tolist():
            for index in (lengths == length).nonzero()[:, 0].split(size):
                yield self.batch(index)

    def parts(self, size: int = 1000) -> Iterator[tuple[Tensor | slice, Batch]]:
        """Yield the places of some inputs and their batch, until all were yielded once.

        Texts come in the order of their lengths, so that little of a batch is padding; other
        inputs in their own.
        """
        lengths = self._lengths()
        if lengths is None:
            size = min(size, 4 * inputs_at_once(self.shape))  # of large ones
            starts = range(0, len(self), size)
            yield from ((at, self.batch(at)) for at in (slice(s, s + size) for s in starts))
            return
        for index in lengths.argsort(stable=True).split(size):
            yield index, self.batch(index)

    def _lengths(self) -> Tensor | None:  # (N,)
        """Return the number of tokens of each input; None where inputs are no texts."""
        mask = self.raw.get(MASK) if isinstance(self.raw, dict) else None
        return None if mask is None or mask.dim() != 2 else mask.sum(dim=1)

    def sample(self, count: int, seed: int) -> Inputs:
        """Return at most ``count`` inputs, drawn without replacement."""
        generator = torch.Generator().manual_seed(seed)
        return self.take(torch.randperm(len(self), generator=generator)[:count])

    def first(self, count: int) -> Inputs:
        """Return the first inputs, at most ``count``."""
        return self.take(slice(0, count))

    def take(self, index: Tensor | slice) -> Inputs:
        """Return some of the inputs."""
        return replace(self, raw=take(self.raw, index))


def fit_inputs(inputs: Inputs, check: Callable[[Batch], None]) -> Inputs:
    """Return inputs in the form that a network takes.

    Whole numbers stay whole for a network that takes them, such as one that begins with an
    embedding, and are floats for any other. Images without channels get one where that helps.

    Args:
        inputs: The inputs.
        check: Function of a small batch that raises a ``TaskError`` where the network refuses it.

    Raises:
        TaskError: If the network takes them in no form.
    """
    try:
        check(inputs.batch(slice(0, 4)))
        return inputs
    except TaskError as error:
        for other in _other_forms(inputs):
            with suppress(TaskError):
                check(other.batch(slice(0, 4)))
                return other
        raise error


def _other_forms(inputs: Inputs) -> Iterator[Inputs]:
    raw = inputs.raw
    if not isinstance(raw, Tensor):
        return
    whole = not raw.is_floating_point() and raw.dtype != torch.uint8
    if whole:
        yield replace(inputs, raw=raw.to(torch.float32))
    if raw.dim() == 3:
        yield replace(inputs, raw=(raw.to(torch.float32) if whole else raw).unsqueeze(1))


def unlabelled_inputs(
    x: Tensor,  # (N, ...)
    name: str,
    device: str = "cpu",
    normalisation: Normalisation | None = None,
) -> Inputs:
    """Return inputs of data without labels, normalised as those of a task would be.

    Args:
        x: The inputs.
        name: Name for reports.
        device: Device of the batches.
        normalisation: Normalisation; None measures that of byte images.

    Raises:
        TaskError: If they are too few or not finite.
    """
    _check(name, "unlabelled", x, torch.zeros(len(x), dtype=torch.long))
    normalisation = normalisation or _measure(x)
    _check_normalisation(name, x, normalisation)
    return Inputs(x, normalisation, device, name)


def as_they_are(
    x: Batch, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Inputs:
    """Return inputs that need no normalisation, shape (N, ...), for batches of a type."""
    return Inputs(x, PLAIN, str(device), dtype=dtype)


@dataclass(frozen=True)
class Split:
    """Inputs and their labels, shape (N,)."""

    inputs: Inputs
    labels: Tensor

    def first(self, count: int) -> Split:
        """Return the first examples, at most ``count``."""
        return Split(self.inputs.first(count), self.labels[:count])


@dataclass(frozen=True)
class Task:
    """A classification task that a network was, or is to be, trained for.

    Attributes:
        name: Name, path or ``module:factory`` that it was loaded by, or a name for reports.
        train: Examples for training, and without labels for the manifold that a walk keeps.
        select: Examples cut from the training data; every choice is made on them.
        test: Examples for the numbers that are reported, never for a choice.
        classes: Number of classes of the labels.
        input_shape: Shape of one input, see :data:`~geomerge.networks.batches.Shape`.
        first_class: Label that the task's own class 0 has, where several tasks share a head.
        class_names: Names of the task's own classes by their numbers; empty where not known.

    Example:
        >>> import torch
        >>> import geomerge as gm
        >>> x, y = torch.randn(120, 5), torch.arange(120) % 3
        >>> task = gm.Task.from_tensors(x, y, name="mine")
        >>> [len(split.labels) for split in (task.train, task.select, task.test)]
        [80, 20, 20]
    """

    name: str
    train: Split
    select: Split
    test: Split
    classes: int
    input_shape: Shape
    first_class: int = 0
    class_names: tuple[str, ...] = ()

    @classmethod
    def from_tensors(
        cls,
        x: Any,
        y: Any,
        *,
        test: tuple[Any, Any] | None = None,
        select: tuple[Any, Any] | None = None,
        name: str = "task",
        normalisation: Normalisation | None = None,
        device: str = "cpu",
    ) -> Task:
        """Make a task of tensors or arrays.

        Args:
            x: Inputs: one tensor, shape (N, ...), or for networks of several inputs a tuple of
                tensors or a mapping of tensors by the names of the network's arguments.
            y: Class numbers from 0 on, shape (N,).
            test: Inputs and labels of the test split; None cuts a sixth of the examples.
            select: Inputs and labels of the selection split; None cuts 5000 of the examples, or a
                fifth of fewer than 25 000.
            name: Name for reports.
            normalisation: Normalisation of inputs of one tensor; None measures it on the training
                split of byte images, and leaves floats as they are.
            device: Device of the batches.

        Raises:
            TaskError: If there are too few examples, or inputs and labels do not fit together.
        """
        train, held, chosen = (
            None if pair is None else examples_of(*pair, name) for pair in ((x, y), test, select)
        )
        assert train is not None
        return make_task(name, train, held, normalisation, device, chosen)

    @classmethod
    def from_loader(
        cls,
        loader: Iterable[Any],
        *,
        test: Iterable[Any] | None = None,
        select: Iterable[Any] | None = None,
        name: str = "task",
        label: str | None = None,
        normalisation: Normalisation | None = None,
        device: str = "cpu",
    ) -> Task:
        """Make a task of a ``DataLoader`` or any other iterable of batches.

        All batches are read once and kept in memory, since walks draw inputs in an order of their
        own.

        Args:
            loader: Batches ``(x, y)``, ``(x_1, ..., x_k, y)``, or mappings of tensors with the
                labels under ``"labels"``, ``"y"`` or another usual name.
            test: The same of the test split; None cuts a sixth of the examples.
            select: The same of the selection split; None cuts it from the training data.
            name: Name for reports.
            label: Entry of a mapping that holds the labels, where it has another name.
            normalisation: Normalisation, as in :meth:`from_tensors`.
            device: Device of the batches.

        Raises:
            TaskError: If a batch holds no labels, or anything that is no tensor.
        """
        train, held, chosen = (
            None if source is None else collect(source, name, label)
            for source in (loader, test, select)
        )
        assert train is not None
        return make_task(name, train, held, normalisation, device, chosen)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        test: Any | None = None,
        select: Any | None = None,
        name: str = "task",
        label: str | None = None,
        normalisation: Normalisation | None = None,
        device: str = "cpu",
    ) -> Task:
        """Make a task of a ``torch.utils.data.Dataset``, whose examples are all read once.

        Args:
            dataset: Examples ``(x, y)``, ``(x_1, ..., x_k, y)``, or mappings with the label under
                ``"label"``, ``"y"`` or another usual name. Images of PIL become bytes of shape
                (channels, height, width).
            test: The same of the test split; None cuts a sixth of the examples.
            select: The same of the selection split; None cuts it from the training data.
            name: Name for reports.
            label: Entry of a mapping that holds the label, where it has another name.
            normalisation: Normalisation, as in :meth:`from_tensors`.
            device: Device of the batches.

        Raises:
            TaskError: If an example holds no label, or anything that is no tensor, or the test
                split names other classes than the training data.
        """
        names = class_names_of(dataset)
        for what, part in (("test", test), ("selection", select)):
            own = class_names_of(part)
            if own and names and own != names[: len(own)]:
                raise TaskError(
                    f"the {what} split of {name} has the classes {', '.join(own)}, and the "
                    f"training data {', '.join(names)}: one class has two numbers; number them "
                    "alike"
                )
        loaders = [None if data is None else in_batches(data) for data in (dataset, test, select)]
        assert loaders[0] is not None
        task = cls.from_loader(
            loaders[0], test=loaders[1], select=loaders[2], name=name, label=label,
            normalisation=normalisation, device=device,
        )  # fmt: skip
        return replace(task, class_names=names)

    @property
    def normalisation(self) -> Normalisation:
        """Normalisation of all inputs."""
        return self.train.inputs.normalisation

    def fitted(self, check: Callable[[Batch], None]) -> Task:
        """Return the task with its inputs in the form that a network takes; see :func:`fit_inputs`.

        Args:
            check: Function of a small batch that raises a ``TaskError`` where the network refuses
                it.

        Raises:
            TaskError: If the network takes the inputs in no form.
        """
        inputs = fit_inputs(self.train.inputs, check)
        if inputs is self.train.inputs:
            return self
        assert isinstance(inputs.raw, Tensor)
        dtype, dims = inputs.raw.dtype, inputs.raw.dim()

        def formed(raw: Batch) -> Batch:
            assert isinstance(raw, Tensor)
            made = raw.to(dtype)
            return made.unsqueeze(1) if made.dim() < dims else made

        train, select, test = (
            Split(replace(s.inputs, raw=formed(s.inputs.raw)), s.labels)
            for s in (self.train, self.select, self.test)
        )
        shape = train.inputs.shape
        return replace(self, train=train, select=select, test=test, input_shape=shape)

    def of_dtype(self, dtype: torch.dtype) -> Task:
        """Return the task with floating inputs of another type."""
        train, select, test = (
            Split(s.inputs.of_dtype(dtype), s.labels) for s in (self.train, self.select, self.test)
        )
        return replace(self, train=train, select=select, test=test)

    def shifted(self, offset: int) -> Task:
        """Return the task with its classes numbered from ``offset`` on."""
        train, select, test = (
            Split(s.inputs, s.labels + offset) for s in (self.train, self.select, self.test)
        )
        return replace(
            self, train=train, select=select, test=test, classes=self.classes + offset,
            first_class=self.first_class + offset,
        )  # fmt: skip


def make_task(
    name: str,
    train: Examples,  # (N, ...), (N,)
    test: Examples | None,
    normalisation: Normalisation | None,
    device: str = "cpu",
    select: Examples | None = None,
) -> Task:
    """Check examples, cut the splits that are missing, and make a task of them.

    Args:
        name: Name for reports.
        train: Inputs (bytes, floats or integers) and integer labels.
        test: The same for the test split; without it a sixth of ``train`` is cut off first.
        normalisation: Normalisation per channel; None measures it on the training split of byte
            images and leaves floats as they are.
        device: Device of the batches.
        select: The same for the selection split; without it 5000 examples are cut off, or a fifth
            of fewer than 25 000.

    Raises:
        TaskError: If there are too few examples, or inputs and labels do not fit together.
    """
    for what, examples in (("training", train), ("test", test), ("selection", select)):
        if examples is not None:
            _check(name, what, *examples)
    if test is None:
        train, test = _cut(train, batch_size(train[0]) // 6, SELECTION_SEED + 1)
    if select is None:
        size = min(SELECTION_SIZE, batch_size(train[0]) // 5)
        train, select = _cut(train, size, SELECTION_SEED)
    if normalisation is None:
        normalisation = _measure(train[0])
    _check_normalisation(name, train[0], normalisation)
    splits = [
        Split(Inputs(x, normalisation, device, name), y.long().to(device))
        for x, y in (train, select, test)
    ]
    classes = max(int(y.max()) for _, y in (train, select, test)) + 1
    return Task(name, splits[0], splits[1], splits[2], classes, splits[0].inputs.shape)


def _check(name: str, what: str, x: Batch, y: Tensor) -> None:
    """Refuse examples that are too few, or whose inputs and labels do not fit together."""
    for leaf in leaves(x):
        if len(leaf) != len(y):
            raise TaskError(
                f"{name} has {len(leaf)} {what} inputs and {len(y)} labels, expected as many of "
                "each; check the data"
            )
        if leaf.is_floating_point() and not torch.isfinite(leaf).all():
            raise TaskError(f"the {what} inputs of {name} are not all finite; clean the data")
    if len(y) < _LEAST:
        raise TaskError(
            f"{name} has {len(y)} {what} examples, expected at least {_LEAST}; check the data"
        )
    if y.dim() != 1 or y.is_floating_point() or int(y.min()) < 0:
        raise TaskError(
            f"the {what} labels of {name} are not one class number from 0 on for each "
            f"input (type {y.dtype}, shape {tuple(y.shape)}); convert them"
        )


def _check_normalisation(name: str, x: Batch, normalisation: Normalisation) -> None:
    if not isinstance(x, Tensor):
        if normalisation != PLAIN:
            raise TaskError(
                f"the inputs of {name} are several tensors, which one `normalisation` cannot be "
                "for; leave it out and normalise them yourself"
            )
        return
    channels = x.shape[1] if x.dim() > 2 else 1
    for numbers in (normalisation.mean, normalisation.std):
        if len(numbers) not in (1, channels):
            raise TaskError(
                f"the normalisation of {name} has {len(numbers)} numbers, expected 1 or "
                f"{channels}, one per channel; correct it"
            )
    if any(s <= 0 for s in normalisation.std):
        raise TaskError(f"the normalisation of {name} has a deviation that is not positive")


def _cut(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """Return examples without some that are drawn, and those."""
    x, y = examples
    order = torch.randperm(batch_size(x), generator=torch.Generator().manual_seed(seed))
    drawn, rest = order[:count], order[count:]
    return (take(x, rest), y[rest]), (take(x, drawn), y[drawn])


def _measure(x: Batch) -> Normalisation:
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        return PLAIN
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(1)
    parts = flat.transpose(0, 1).flatten(1).double() / 255
    mean = [round(float(part.mean()), 4) for part in parts]
    std = [max(round(float(part.std()), 4), 1e-4) for part in parts]
    return Normalisation(tuple(mean), tuple(std))
