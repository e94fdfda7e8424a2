"""Tasks: labelled examples in a training, a selection and a test split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geomerge.data.collect import Examples, class_names_of, collect, examples_of, in_batches
from geomerge.data.inputs import (
    UNLABELLED,
    Inputs,
    check_examples,
    check_normalisation,
    fit_inputs,
    measured_normalisation,
)
from geomerge.data.normalisation import Normalisation
from geomerge.errors import TaskError
from geomerge.networks.batches import (
    Batch,
    Shape,
    batch_size,
    take,
    token_mask,
)

__all__ = ["Split", "Task", "make_task"]

SELECTION_SIZE = 5000
SELECTION_SEED = 0  # fixed: every command must cut the same examples


@dataclass(frozen=True)
class Split:
    """Inputs and their labels.

    Attributes:
        inputs: Inputs.
        labels: Class of each input, shape (N,), or token that follows at each position of each
            text, shape (N, T), :data:`UNLABELLED` where none is to be predicted.
    """

    inputs: Inputs
    labels: Tensor

    @property
    def measure(self) -> str:
        """What networks are measured by: ``"accuracy"``, of tokens to be predicted ``"loss"``."""
        return "accuracy" if self.labels.dim() == 1 else "loss"

    @property
    def predicted(self) -> int:
        """Number of predictions that the measure is a mean of: inputs, or tokens."""
        return int((self.labels != UNLABELLED).sum()) if self.labels.dim() > 1 else len(self.labels)

    def targets(self, index: Tensor | slice) -> Tensor:  # (R,)
        """Return the labels of some inputs, one for each row of a network's outputs."""
        labels = self.labels[index]
        if labels.dim() == 1:
            return labels
        mask = token_mask(take(self.inputs.raw, index))
        return labels.flatten() if mask is None else labels[mask.to(labels.device)]

    def first(self, count: int) -> Split:
        """Return the first examples, at most ``count``."""
        return Split(self.inputs.first(count), self.labels[:count])

    def sample(self, count: int, seed: int = 0) -> Split:
        """Return ``count`` examples, drawn without replacement; the same split of no more."""
        if count >= len(self.labels):
            return self
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(self.labels), generator=generator)[:count]
        return Split(self.inputs.take(index), self.labels[index])


@dataclass(frozen=True)
class Task:
    """A task that a network was, or is to be, trained for: classification, or prediction of tokens.

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
    def measure(self) -> str:
        """What networks are measured by: ``"accuracy"``, of language models ``"loss"``."""
        return self.test.measure

    def in_parts(self, at_once: int | None) -> Task:
        """Return the task with so many inputs at a time at most, for networks of large outputs."""
        train, select, test = (
            Split(replace(s.inputs, at_once=at_once), s.labels)
            for s in (self.train, self.select, self.test)
        )
        return replace(self, train=train, select=select, test=test)

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
            check_examples(name, what, *examples)
    if test is None:
        train, test = _cut(train, batch_size(train[0]) // 6, SELECTION_SEED + 1)
    if select is None:
        size = min(SELECTION_SIZE, batch_size(train[0]) // 5)
        train, select = _cut(train, size, SELECTION_SEED)
    if normalisation is None:
        normalisation = measured_normalisation(train[0])
    check_normalisation(name, train[0], normalisation)
    splits = [
        Split(Inputs(x, normalisation, device, name), y.long().to(device))
        for x, y in (train, select, test)
    ]
    classes = max(int(y.max()) for _, y in (train, select, test)) + 1
    return Task(name, splits[0], splits[1], splits[2], classes, splits[0].inputs.shape)


def _cut(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """Return examples without some that are drawn, and those."""
    x, y = examples
    order = torch.randperm(batch_size(x), generator=torch.Generator().manual_seed(seed))
    drawn, rest = order[:count], order[count:]
    return (take(x, rest), y[rest]), (take(x, drawn), y[drawn])
