"""Scores of a network on a split: accuracy, or of a language model the inverse of its perplexity.

Both lie in [0, 1] and are better the higher they are, so that points are picked and networks ranked
by them alike. The mean loss of a language model (cross-entropy per token, in nats) is -log of its
score, and its perplexity 1 / score: the score is the geometric mean of the probabilities that the
right tokens get. Perplexities of different texts differ in size, so that rules compare scores as
shares of the experts' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from geomerge.data import Split
from geomerge.evaluation.accuracy import share_right
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network

__all__ = [
    "cell",
    "drop",
    "loss_of",
    "mean_loss",
    "perplexity_of",
    "score",
    "score_of",
    "unit",
    "worded",
]


def score(
    network: Network,
    w: Tensor,  # (n,)
    split: Split,
) -> float:
    """Return the score of a network on a split, in [0, 1]."""
    return score_of(partial(network.logits, w), split)


def score_of(outputs: Callable[[Batch], Tensor], split: Split) -> float:
    """Return the score of logits on a split, in [0, 1].

    Args:
        outputs: Inputs, shape (B, ...), to logits of each class, shape (B, m), or of each token of
            the vocabulary at every token of the inputs, shape (R, m).
        split: Labelled examples.
    """
    if split.measure == "accuracy":
        return share_right(outputs, split)
    return math.exp(-mean_loss(outputs, split))


def mean_loss(outputs: Callable[[Batch], Tensor], split: Split) -> float:
    """Return the mean cross-entropy of all tokens to be predicted, in nats.

    Args:
        outputs: Inputs to logits, as in :func:`score_of`.
        split: Texts with the tokens to be predicted.
    """
    total = 0.0
    for index, x in split.inputs.parts():
        logits, labels = outputs(x), split.targets(index)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        total += float(loss)
    return total / split.predicted


def loss_of(score: float) -> float:
    """Return the mean loss that a language model's score stands for; infinite for a score of 0."""
    return -math.log(score) if score > 0 else math.inf


def perplexity_of(score: float) -> float:
    """Return the perplexity that a language model's score stands for; infinite for a score of 0."""
    return 1 / score if score > 0 else math.inf


def drop(own: float, value: float, measure: str) -> float:
    """Return how far a score is below an expert's own.

    Args:
        own: Score of the expert.
        value: Score of another network on the same split.
        measure: ``"accuracy"`` or ``"loss"``.

    Returns:
        The difference of accuracies; or the rise of the perplexity, as a share of the expert's.
    """
    return own - value if measure == "accuracy" else own / max(value, 1e-30) - 1


def unit(measures: Iterable[str]) -> str:
    """Return what the numbers of a table are: ``"accuracy, %"``, ``"perplexity"``, or both.

    Args:
        measures: Measures of its tasks.
    """
    known = set(measures)
    words = {"accuracy": "accuracy, %", "loss": "perplexity"}
    return " or ".join(word for measure, word in words.items() if measure in known)


def cell(score: float | None, measure: str, digits: int = 2) -> str:
    """Return a score as it stands in a table: an accuracy in percent, or a perplexity.

    Args:
        score: Score, in [0, 1]; None where it is not known.
        measure: ``"accuracy"`` or ``"loss"``.
        digits: Digits after the point.
    """
    if score is None:
        return "-"
    return f"{100 * score if measure == 'accuracy' else perplexity_of(score):.{digits}f}"


def worded(score: float, measure: str, digits: int = 1) -> str:
    """Return a score in a sentence, such as ``"81.2 %"`` or ``"perplexity 24.1"``.

    Args:
        score: Score, in [0, 1].
        measure: ``"accuracy"`` or ``"loss"``.
        digits: Digits after the point.
    """
    number = cell(score, measure, digits)
    return f"{number} %" if measure == "accuracy" else f"perplexity {number}"
