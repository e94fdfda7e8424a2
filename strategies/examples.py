"""Data sets for Avalanche whose examples are read a batch at a time.

Avalanche reads one example after the other, which costs more than a step of a small network. Here
the indices of a batch are collected first, and its inputs are taken, normalised and permuted at
once. Avalanche sees ordinary data sets: subsets and concatenations work, and its own loaders do,
slowly; a ``DataLoader`` of PyTorch and :class:`BatchLoader`, which ``Pace`` installs, are fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from geomerge.data import Inputs
from geomerge.strategies.avalanche import (
    ConstantSequence,
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
    TaskLabels,
)

__all__ = ["BatchLoader", "Examples", "ExperienceData", "Pool"]


@dataclass(frozen=True)
class Examples:
    """Examples of one split of one experience, processed when a batch is taken.

    Attributes:
        inputs: Inputs of N examples; experiences may share the tensor.
        labels: Labels, shape (N,).
        task: Task label; 0 where the scenario has none.
        permutation: Permutation of the entries of an input, shape (d,); None is no permutation.
    """

    inputs: Inputs
    labels: Tensor
    task: int = 0
    permutation: Tensor | None = None

    def take(self, index: Tensor | slice) -> Tensor:  # (B, ...)
        """Return normalised inputs in float32."""
        x = self.inputs.batch(index)
        assert isinstance(x, Tensor), "streams are of inputs of one tensor"
        if self.permutation is None:
            return x
        return x.flatten(1).index_select(1, self.permutation).view_as(x)


class Pool:
    """Examples of all experiences of a stream, numbered consecutively.

    Args:
        parts: Examples of each experience.
    """

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts = parts
        sizes = torch.tensor([len(part.labels) for part in parts])
        self._ends = sizes.cumsum(0)
        self._starts = self._ends - sizes
        self._labels = torch.cat([part.labels for part in parts])
        self._tasks = torch.tensor([part.task for part in parts])

    def take(self, rows: Tensor) -> list[Tensor]:  # (B,) -> (B, ...), (B,), (B,)
        """Return inputs, labels and task labels of the examples with these numbers."""
        source = torch.bucketize(rows, self._ends, right=True)
        first = int(source[0])
        if bool((source == first).all()):
            x = self.parts[first].take(rows - self._starts[first])
        else:
            found = []
            order = source.argsort(stable=True)
            for k in source.unique().tolist():
                found.append(self.parts[k].take(rows[source == k] - self._starts[k]))
            mixed = torch.cat(found)
            x = torch.empty_like(mixed)
            x[order] = mixed
        return [x, self._labels[rows], self._tasks[source]]

    def experience(self, k: int) -> ExperienceData:
        """Return the data set of experience k."""
        rows = range(int(self._starts[k]), int(self._ends[k]))
        return ExperienceData(
            [_Single(self, rows)],
            data_attributes=[
                DataAttribute(self.parts[k].labels.tolist(), "targets"),
                TaskLabels(ConstantSequence(self.parts[k].task, len(rows))),
                DataAttribute(rows, "rows"),
            ],
            collate_fn=_collate,
        )


class ExperienceData(TaskAwareSupervisedClassificationDataset):  # type: ignore[misc]
    """Examples of a pool as a data set of Avalanche.

    The attribute ``rows``, which subsets and concatenations carry along, holds their numbers.
    """

    def __init__(self, datasets: Any, **kwargs: Any) -> None:
        super().__init__(datasets, **kwargs)
        self.pool: Pool = datasets[0].pool
        self._numbers: Tensor | None = None

    @property
    def numbers(self) -> Tensor:  # (N,)
        """Number of each example in the pool."""
        if self._numbers is None:
            self._numbers = torch.tensor(list(self._data_attributes["rows"]))
        return self._numbers

    def take(self, index: Tensor) -> list[Tensor]:  # (B,) -> (B, ...), (B,), (B,)
        """Return inputs, labels and task labels of these examples of the data set."""
        return self.pool.take(self.numbers[index])

    def __getitems__(self, index: Sequence[int]) -> _Batch:
        """Return a whole batch; a DataLoader of PyTorch calls this method if there is one."""
        return _Batch(self.take(torch.as_tensor(index)))


class BatchLoader:
    """Batches of a data set in random order, each with random examples of a memory.

    Args:
        data: Data set.
        batch: Number of examples of each batch; the last may have fewer.
        memory: Second data set, of which a random part is added to each batch; None adds none.
        extra: Largest number of examples added to a batch.
    """

    def __init__(
        self,
        data: ExperienceData,
        batch: int,
        memory: ExperienceData | None = None,
        extra: int = 0,
    ) -> None:
        self._data, self._batch = data, batch
        self._memory, self._extra = memory, extra

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._data) // self._batch)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Yield inputs, labels and task labels."""
        for index in torch.randperm(len(self._data)).split(self._batch):
            rows = self._data.numbers[index]
            if self._memory is not None:
                drawn = torch.randperm(len(self._memory))[: self._extra]
                rows = torch.cat([rows, self._memory.numbers[drawn]])
            yield self._data.pool.take(rows)


class _Batch(list[tuple[Tensor, int, int]]):
    """Examples of a batch, with the batch that collating them would give."""

    def __init__(self, whole: list[Tensor]) -> None:
        x, y, tasks = whole
        super().__init__(zip(x, y.tolist(), tasks.tolist(), strict=True))
        self.whole = whole


class _Single(Dataset[tuple[Tensor, int]]):
    """Data set that gives one example after the other."""

    def __init__(self, pool: Pool, rows: range) -> None:
        self.pool, self._rows = pool, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y, _ = self.pool.take(torch.tensor([self._rows[index]]))
        return x[0], int(y)


def _collate(examples: Any) -> list[Tensor]:
    return examples.whole if isinstance(examples, _Batch) else list(default_collate(examples))
