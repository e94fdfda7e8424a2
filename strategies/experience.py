"""Inputs, labels and task label of an experience of Avalanche, collected into tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from geomerge.errors import OptionError, type_of

__all__ = ["classes_of", "collect", "task_label"]

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


def classes_of(experience: Any) -> set[int]:
    """Return the classes of an experience; none where its dataset does not list its labels."""
    return {int(c) for c in getattr(experience.dataset, "targets", ())}


def collect(experience: Any, most: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return an experience's inputs and labels transformed as for evaluation, without augmentation.

    Args:
        experience: Experience of an Avalanche stream.
        most: Largest number of examples, drawn without replacement; None takes all.
        seed: Seed of the draw.

    Returns:
        Inputs, shape (N, ...), and labels, shape (N,).

    Raises:
        OptionError: If inputs are no tensors.
    """
    dataset = experience.dataset.eval()
    collate = getattr(dataset, "collate_fn", None)
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
