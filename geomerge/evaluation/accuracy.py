"""Accuracy of a network on a labelled split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from geomerge.data import Split
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.processes import team

__all__ = ["accuracy", "right_by_class", "share_right"]


def accuracy(
    network: Network,
    w: Tensor,  # (n,)
    split: Split,
    batch: int = 2000,
) -> float:
    """Return the share of a split that the network labels correctly, in [0, 1]."""
    return share_right(partial(network.logits, w), split, batch)


def share_right(scores: Callable[[Batch], Tensor], split: Split, batch: int = 2000) -> float:
    """Return the share of examples whose label has the largest score, in [0, 1].

    Args:
        scores: Function of inputs, shape (B, ...), that returns scores of classes, shape (B, m).
        split: Labelled examples.
        batch: Number of inputs in one pass.
    """
    right, of = right_by_class(scores, split, batch)
    return int(right.sum()) / int(of.sum())


def right_by_class(
    scores: Callable[[Batch], Tensor], split: Split, batch: int = 2000
) -> tuple[Tensor, Tensor]:
    """Return the number of correctly labelled examples of each class, and of all its examples.

    Args:
        scores: Function of inputs, shape (B, ...), that returns scores of classes, shape (B, m).
        split: Labelled examples.
        batch: Number of inputs in one pass.

    Returns:
        Two counts by class number, shape (C,) each, C one more than the largest label.
    """
    of = torch.bincount(split.labels)
    right = torch.zeros_like(of)
    mates = team()
    part = slice(None) if mates is None else mates.share(len(split.labels))
    inputs, labels = split.inputs.take(part), split.labels[part]
    for index, x in inputs.parts(batch) if len(labels) else ():
        y = labels[index]
        hits = y[scores(x).argmax(dim=1) == y]
        right += torch.bincount(hits, minlength=len(of))
    if mates is not None:
        mates.add([right])
    return right, of
