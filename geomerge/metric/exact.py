r"""The exact metric g = J'J / N over as many inputs as wanted, by products g u alone.

:math:`g u = \frac1N \sum_x J_x' (J_x u)` costs one product with J and one with J', from a network
linearised once. :class:`~geomerge.metric.krylov.Krylov` turns some tens of products into the
directions that matter for one vector.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metric.base import Spectrum, by_spectrum
from geomerge.metric.derivatives import Linearisation
from geomerge.metric.krylov import Krylov, lanczos
from geomerge.network import Network

__all__ = ["ExactMetric", "exact_metric"]


class ExactMetric:
    """The pullback metric itself, arXiv 2012.09605 eq. (2) as a mean over inputs.

    Args:
        batches: The network linearised on each batch.
        rank: Products spent on one spectrum.
    """

    name = "exact"
    floor = 0.0
    transformed = by_spectrum

    def __init__(self, batches: list[Linearisation], rank: int) -> None:
        self._batches = batches
        self._rank = rank
        self.count = sum(len(batch.outputs) for batch in batches)  # N

    def product(
        self,
        u: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return g u."""
        total = torch.zeros_like(u)
        for batch in self._batches:
            total += batch.pull(batch.push(u))
        return total / self.count

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' g v."""
        total = 0.0
        for batch in self._batches:
            one = batch.push(u)
            other = one if u is v else batch.push(v)
            total += float((one.double() * other.double()).sum())
        return total / self.count

    def krylov(
        self,
        v: Tensor,  # (n,)
    ) -> Krylov:
        """Return the Krylov space of v, which also knows how exact it is."""
        return lanczos(self.product, v, self._rank)

    def spectrum(
        self,
        v: Tensor,  # (n,)
    ) -> Spectrum:
        """Split v along the Ritz vectors of its Krylov space."""
        return self.krylov(v).spectrum()


def exact_metric(
    network: Network,
    w: Tensor,  # (n,)
    batches: Iterable[Tensor],
    output: str = "hellinger",
    rank: int = 40,
) -> ExactMetric:
    """Linearise a network at w.

    Args:
        network: The network.
        w: Where.
        batches: Inputs (B, ...) of the manifold; each is seen once.
        output: One of :data:`~geomerge.metric.outputs.OUTPUTS`.
        rank: Products spent on one spectrum.

    Returns:
        The metric. It keeps the activations of all inputs, and their gradients: 0.1 MB for each
        input of an MLP with 300 and 100 hidden units, 6 MB for each 32 x 32 image of a VGG-11.

    Raises:
        NumericalError: If outputs are not finite, or no input was given.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.metric import exact_metric
        >>> network = gm.Network(nn.Linear(3, 2))
        >>> metric = exact_metric(network, network.initial, [torch.eye(3)], "logits")
        >>> metric.product(torch.ones(network.n))  # g u
        tensor([0.6667, 0.6667, 0.6667, 0.6667, 0.6667, 0.6667, 2.0000, 2.0000])
    """
    linearised = [Linearisation(network, w, x, output) for x in batches]
    if not linearised:
        raise NumericalError("no inputs to measure a metric on, expected at least one; give data")
    return ExactMetric(linearised, rank)
