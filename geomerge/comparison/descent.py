"""Labelled examples -> a network fine-tuned on them, freely or held where it started."""

from __future__ import annotations

from torch import Tensor

from geomerge.data import Split
from geomerge.errors import NumericalError
from geomerge.networks.network import Network
from geomerge.walks.objectives import CrossEntropy

__all__ = ["BATCH", "RATE", "fine_tuned"]

BATCH = 256
RATE = 0.02  # as the benchmarks fine-tune


def fine_tuned(
    network: Network,
    start: Tensor,  # (n,)
    split: Split,
    samples: int,
    *,
    rate: float = RATE,
    held: Tensor | None = None,  # (n,)
    seed: int = 0,
) -> tuple[Tensor, int]:
    """Descend the mean cross-entropy of labels by plain stochastic gradients at a constant rate.

    Args:
        network: The network.
        start: Where to start.
        split: Labelled examples; running statistics stay.
        samples: How many may be seen, all passes counted.
        rate: Learning rate, constant.
        held: Stiffness k of a penalty sum_i k_i (w_i - start_i)^2 / 2. Its part of each step is
            taken implicitly, so that no stiffness is too large for the rate.
        seed: Of the order of examples.

    Returns:
        The weights, shape (n,), and the samples seen.

    Raises:
        NumericalError: If the loss stops being finite.
    """
    direction = CrossEntropy(network, split, BATCH, seed)
    batch = min(BATCH, len(split.labels))
    w = start
    steps = samples // batch
    for step in range(steps):
        loss, v = direction(w)
        if not loss < float("inf"):
            raise NumericalError(f"the loss of fine-tuning is {loss} after {step} steps")
        w = w + rate * v
        if held is not None:
            w = (w + rate * held * start) / (1 + rate * held)
    return w, steps * batch
