"""Inputs, labels and task labels of an experience of Avalanche, collected into tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from geomerge.errors import OptionError, type_of
from geomerge.strategies.avalanche import is_multi_task_module

__all__ = ["classes_of", "collect", "heads_of", "task_label"]

_BATCH = 1024


def task_label(experience: Any) -> int:
    """Return the task label of an experience.

    Raises:
        OptionError: If it has several.
    """
    labels = set(experience.task_labels)
    if len(labels) != 1:
        raise OptionError(
            f"an experience has the task labels {sorted(labels)} and the model a head for each, "
            "expected one; split it into an experience for each task"
        )
    return int(labels.pop())


def heads_of(experience: Any, model: nn.Module) -> list[int | None]:
    """Return the heads that an experience trains: its task labels; None for a model with one."""
    if not is_multi_task_module(model):
        return [None]
    return [int(label) for label in sorted(set(experience.task_labels))]


def classes_of(experience: Any, heads: list[int | None]) -> set[tuple[int | None, int]]:
    """Return head and number of the classes of an experience.

    There are none where its dataset does not list its labels.

    Args:
        experience: Experience of an Avalanche stream.
        heads: Its heads, as of :func:`heads_of`.
    """
    labels = [int(c) for c in getattr(experience.dataset, "targets", ())]
    if len(heads) == 1 or not labels:
        return {(heads[0], c) for c in labels}
    tasks = [int(t) for t in experience.dataset.targets_task_labels]
    return set(zip(tasks, labels, strict=True))


def collect(
    experience: Any, most: int | None, seed: int, task: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return an experience's examples transformed as for evaluation, without augmentation.

    Args:
        experience: Experience of an Avalanche stream.
        most: Largest number of examples, drawn without replacement; None takes all.
        seed: Seed of the draw.
        task: Task label of the examples; None takes those of any.

    Returns:
        Inputs, shape (N, ...), and labels, shape (N,).

    Raises:
        OptionError: If inputs are no tensors.
    """
    dataset = experience.dataset.eval()
    collate = getattr(dataset, "collate_fn", None)
    if task is not None:
        own = [i for i, label in enumerate(dataset.targets_task_labels) if int(label) == task]
        dataset = Subset(dataset, own)
    if most is not None and most < len(dataset):
        generator = torch.Generator().manual_seed(seed)
        dataset = Subset(dataset, torch.randperm(len(dataset), generator=generator)[:most].tolist())
    xs, ys = [], []
    for x, y, *_ in DataLoader(dataset, batch_size=_BATCH, collate_fn=collate):
        if not isinstance(x, Tensor):
            raise OptionError(
                f"the inputs of an experience come as {type_of(x)}, expected one tensor; "
                "have the dataset return one"
            )
        # Bytes are the numbers that the model is given, not pixels to be scaled.
        xs.append(x.float() if x.dtype == torch.uint8 else x)
        ys.append(torch.as_tensor(y))
    return torch.cat(xs), torch.cat(ys)
