"""Accuracy of a network on a labelled split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from geomerge.data import Split
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network

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
    """Return the share of a split whose largest score is that of its label, in [0, 1].

    Args:
        scores: Inputs, shape (B, ...), to a score of each class, shape (B, m).
        split: Labelled examples.
        batch: Inputs at a time.
    """
    right, of = right_by_class(scores, split, batch)
    return int(right.sum()) / int(of.sum())


def right_by_class(
    scores: Callable[[Batch], Tensor], split: Split, batch: int = 2000
) -> tuple[Tensor, Tensor]:
    """Return how many examples of each class get their label's largest score, of how many.

    Args:
        scores: As in :func:`share_right`.
        split: Labelled examples.
        batch: Inputs at a time.

    Returns:
        Two counts by class number, shape (C,) each, C one more than the largest label.
    """
    of = torch.bincount(split.labels)
    right = torch.zeros_like(of)
    for index, x in split.inputs.parts(batch):
        y = split.labels[index]
        hits = y[scores(x).argmax(dim=1) == y]
        right += torch.bincount(hits, minlength=len(of))
    return right, of
