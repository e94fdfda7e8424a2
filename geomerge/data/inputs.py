"""Unlabelled inputs of a task, in normalised batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.data.normalisation import PLAIN, Normalisation
from geomerge.errors import TaskError
from geomerge.networks.batches import (
    MASK,
    Batch,
    Shape,
    batch_size,
    leaves,
    map_leaves,
    rows,
    shape_of,
    take,
    trimmed,
)
from geomerge.networks.network import inputs_at_once

__all__ = [
    "UNLABELLED",
    "Inputs",
    "as_they_are",
    "check_examples",
    "check_normalisation",
    "fit_inputs",
    "measured_normalisation",
    "unlabelled_inputs",
]

UNLABELLED = -100  # label of a token that is not predicted, as transformers has it
_LEAST = 10  # examples of a task
_TRIED = 2  # inputs of the passes that show whether a network takes them
_TEXTS = 256  # of a language model, whose tokens are examples, at least where there are so many


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
        at_once: Number of inputs in one of :meth:`parts` at most, for networks with large outputs.
    """

    raw: Batch
    normalisation: Normalisation
    device: str = "cpu"
    name: str = ""
    dtype: torch.dtype = torch.float32
    at_once: int | None = None

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

    def enough(self, count: int) -> int:
        """Return the number of inputs that have about so many predictions: fewer texts than tokens.

        Args:
            count: Number of predictions; one for each input of anything but a language model.
        """
        if self.at_once is None:
            return count
        return min(count, max(_TEXTS, count // leaves(self.raw)[0].shape[1]))

    def of_dtype(self, dtype: torch.dtype) -> Inputs:
        """Return the same inputs with floating batches of another type."""
        return self if dtype == self.dtype else replace(self, dtype=dtype)

    def batch(self, index: Tensor | slice) -> Batch:  # (B, ...)
        """Return normalised inputs on the device; integers and booleans as they are.

        Of texts, columns that are padding in the whole batch are left out.
        """
        return trimmed(map_leaves(lambda raw: self._normalised(raw, index), self.raw))

    def _normalised(self, raw: Tensor, index: Tensor | slice) -> Tensor:
        x = rows(raw, index).to(self.device)
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

    def equal_batches(self, size: int = 1000) -> EqualBatches:
        """Return all inputs in batches in which texts are equally long, so that none is padded.

        Inputs that are no texts are in the batches of :meth:`batches`.
        """
        return EqualBatches(self, size)

    def equal_batch_count(self, size: int = 1000) -> int:
        """Return the number of batches of :meth:`equal_batches`."""
        groups = self.equally_long(size)
        return -(-len(self) // size) if groups is None else len(groups)

    def equally_long(self, size: int) -> list[Tensor] | None:
        """Return the places of texts of each length, ``size`` at most; None of other inputs."""
        lengths = self._lengths()
        if lengths is None:
            return None
        places = [(lengths == length).nonzero()[:, 0] for length in lengths.unique().tolist()]
        return [
            part for place in places
            for part in place.split(min(size, _texts_at_once(lengths[place])))
        ]  # fmt: skip

    def parts(self, size: int = 1000) -> Iterator[tuple[Tensor | slice, Batch]]:
        """Yield the places of some inputs and their batch, until all were yielded once.

        Texts come in the order of their lengths, so that little of a batch is padding; other
        inputs in their own.
        """
        size = min(size, self.at_once or size)
        lengths = self._lengths()
        if lengths is None:
            size = min(size, 4 * inputs_at_once(self.shape))  # of large ones
            starts = range(0, len(self), size)
            yield from ((at, self.batch(at)) for at in (slice(s, s + size) for s in starts))
            return
        order = lengths.argsort(stable=True)
        while len(order):
            index = order[: min(size, _texts_at_once(lengths[order[:size]]))]
            yield index, self.batch(index)
            order = order[len(index) :]

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


def _texts_at_once(
    lengths: Tensor,  # (N,), sorted
) -> int:
    """Return the number of texts of one pass: as many of the first as the longest allows."""
    found = len(lengths)
    while found > (most := inputs_at_once(((MASK, (int(lengths[found - 1]),)),))):
        found = max(most, found // 2)
    return found


@dataclass(frozen=True)
class EqualBatches:
    """Batches in which texts are equally long, which can be iterated over several times.

    Attributes:
        inputs: Inputs.
        size: Largest number of inputs in a batch.
    """

    inputs: Inputs
    size: int

    def __iter__(self) -> Iterator[Batch]:
        """Yield all inputs."""
        groups = self.inputs.equally_long(self.size)
        yield from (
            self.inputs.batches(self.size) if groups is None else map(self.inputs.batch, groups)
        )


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
        check(inputs.batch(slice(0, _TRIED)))
        return inputs
    except TaskError as error:
        for other in _other_forms(inputs):
            with suppress(TaskError):
                check(other.batch(slice(0, _TRIED)))
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
    check_examples(name, "unlabelled", x, torch.zeros(len(x), dtype=torch.long))
    normalisation = normalisation or measured_normalisation(x)
    check_normalisation(name, x, normalisation)
    return Inputs(x, normalisation, device, name)


def as_they_are(
    x: Batch, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Inputs:
    """Return inputs that need no normalisation, shape (N, ...), for batches of a type."""
    return Inputs(x, PLAIN, str(device), dtype=dtype)


def check_examples(name: str, what: str, x: Batch, y: Tensor) -> None:
    """Refuse examples that are too few, or whose inputs and labels do not fit together.

    Args:
        name: Name of the task, for messages.
        what: Name of the split, for messages.
        x: Inputs.
        y: Labels, shape (N,).

    Raises:
        TaskError: If they cannot be used.
    """
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
    if y.dim() == 2 and not y.is_floating_point() and _labels_tokens(x, y):
        return
    if y.dim() != 1 or y.is_floating_point() or int(y.min()) < 0:
        raise TaskError(
            f"the {what} labels of {name} are not one class number from 0 on for each "
            f"input (type {y.dtype}, shape {tuple(y.shape)}, least {y.min()}); "
            "convert them, and leave out what has no label"
        )


def _labels_tokens(x: Batch, y: Tensor) -> bool:
    """Return whether labels are a token, or none, for each position of texts."""
    known = y[y != UNLABELLED]
    return bool(len(known)) and int(known.min()) >= 0 and any(x.shape == y.shape for x in leaves(x))


def check_normalisation(name: str, x: Batch, normalisation: Normalisation) -> None:
    """Refuse a normalisation that does not fit the inputs of a task.

    Args:
        name: Name of the task, for messages.
        x: Inputs.
        normalisation: Normalisation of the inputs.

    Raises:
        TaskError: If it has other channels, or a deviation that is not positive.
    """
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
            wanted = f"1 or {channels}, one per channel" if channels > 1 else "1"
            raise TaskError(
                f"the normalisation of {name} has {len(numbers)} numbers, expected {wanted}; "
                "correct it"
            )
    if any(s <= 0 for s in normalisation.std):
        raise TaskError(
            f"the normalisation of {name} has the deviations {normalisation.std}, expected "
            "positive numbers; correct them"
        )


def measured_normalisation(x: Batch) -> Normalisation:
    """Return mean and deviation of byte images by channel; other inputs have none."""
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        return PLAIN
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(1)
    mean, std = [], []
    for part in flat.unbind(1):
        counts = torch.bincount(part.reshape(-1), minlength=256).double()  # no copy in floats
        values, number = torch.arange(256).to(counts) / 255, float(counts.sum())
        mean.append(float(counts @ values) / number)
        square = float(counts @ (values - mean[-1]).square())
        std.append((square / max(number - 1, 1)) ** 0.5)
    return Normalisation(
        tuple(round(m, 4) for m in mean), tuple(max(round(s, 4), 1e-4) for s in std)
    )
