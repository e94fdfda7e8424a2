r"""Exact pullback metric g = J'J / N over any number of inputs, by matrix-vector products.

The product :math:`g v = \frac1N \sum_x J_x' (J_x v)` takes one product with J and one with J' of a
network that is linearised once. Functions of g are applied to a vector in its Krylov space, built
by some tens of Lanczos iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.errors import NumericalError
from geomerge.metrics.base import EigenCoordinates, Metric
from geomerge.metrics.linearisation import Linearisation
from geomerge.metrics.registry import BATCH, NetworkSize, metric
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network

__all__ = ["ExactMetric", "Krylov", "exact_metric", "lanczos"]


class ExactMetric(Metric):
    """Pullback metric of arXiv 2012.09605, eq. (2), as a mean over inputs.

    Args:
        batches: Linearised network for each batch of inputs.
        rank: Number of products spent on the coordinates of one vector.
    """

    name = "exact"

    def __init__(self, batches: list[Linearisation], rank: int) -> None:
        self._batches = batches
        self._rank = rank
        self.count = sum(len(batch.outputs) for batch in batches)  # N

    def mv(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return g v."""
        total = torch.zeros_like(v)
        for batch in self._batches:
            total += batch.pull(batch.push(v))
        return total / self.count

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' g v."""
        total = 0.0
        for batch in self._batches:
            first = batch.push(u)
            second = first if u is v else batch.push(v)
            total += float((first.double() * second.double()).sum())
        return total / self.count

    def krylov(
        self,
        v: Tensor,  # (n,)
    ) -> Krylov:
        """Return the Krylov space of v, which also gives the residual of a solution."""
        return lanczos(self.mv, v, self._rank)

    def coordinates(
        self,
        v: Tensor,  # (n,)
    ) -> EigenCoordinates:
        """Return v along the Ritz vectors of its Krylov space."""
        return self.krylov(v).coordinates()


def exact_metric(
    network: Network,
    w: Tensor,  # (n,)
    batches: Iterable[Batch],
    output: str = "hellinger",
    rank: int = 40,
) -> ExactMetric:
    """Linearise a network at w.

    Args:
        network: Network to measure.
        w: Weights at which to measure.
        batches: Batches of inputs, shape (B, ...); the iterable is consumed once.
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        rank: Number of products spent on the coordinates of one vector.

    Returns:
        The metric. It holds the activations and gradients of all inputs: 0.1 MB per input of an MLP
        with 300 and 100 hidden units, 6 MB per 32 x 32 image of a VGG-11.

    Raises:
        NumericalError: If outputs are not finite, or there are no inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.metrics import exact_metric
        >>> network = gm.Network(nn.Linear(3, 2))
        >>> metric = exact_metric(network, network.initial, [torch.eye(3)], "logits")
        >>> metric.mv(torch.ones(network.n))  # g v
        tensor([0.6667, 0.6667, 0.6667, 0.6667, 0.6667, 0.6667, 2.0000, 2.0000])
    """
    linearised = [Linearisation(network, w, x, output) for x in batches]
    if not linearised:
        raise NumericalError("no inputs to measure a metric on, expected at least one; give data")
    return ExactMetric(linearised, rank)


_INPUTS = 500  # inputs per network; every step takes some forty passes over them


def _bytes(sizes: Sequence[NetworkSize]) -> int:
    return len(sizes) * _INPUTS * max(size.pass_bytes for size in sizes)


@metric(
    ExactMetric, "exact pullback metric, by products of a linearised network",
    inputs=_INPUTS, cheaper="kronecker", measuring_bytes=_bytes,
)  # fmt: skip
def _measure(network: Network, w: Tensor, inputs: Inputs, output: str, seed: int) -> ExactMetric:
    return exact_metric(network, w, inputs.equal_batches(BATCH), output)


@dataclass(frozen=True)
class Krylov:
    """Krylov space of v, g v, ..., g^(k-1) v with an orthonormal basis.

    Attributes:
        basis: Basis V_k as rows, shape (k, n), in the type of v.
        values: Ritz values s, clamped at zero, shape (k,), float64.
        vectors: Coordinates Y of the Ritz vectors in the basis as columns, shape (k, k), float64.
        length: Length |v|.
        remainder: Length b_k of the part of g V_k outside of the space.
    """

    basis: Tensor
    values: Tensor
    vectors: Tensor
    length: float
    remainder: float

    def coordinates(self) -> EigenCoordinates:
        """Return v along the Ritz vectors, which depend on v."""
        return EigenCoordinates([self.length * self.vectors[0]], [self.values], self._compose)

    def residual(self, damping: float) -> float:
        """Return |(g + mu I) x - v| of the approximate x = (g + mu I)^-1 v in the space.

        It equals b_k |e_k'c|, where c are the coordinates of x in the basis.

        Args:
            damping: Damping mu.
        """
        c = self.vectors @ (self.length * self.vectors[0] / (self.values + damping))
        return self.remainder * abs(float(c[-1]))

    def _compose(self, parts: list[Tensor]) -> Tensor:  # (n,)
        return (self.vectors @ parts[0]).to(self.basis.dtype) @ self.basis


def lanczos(
    product: Callable[[Tensor], Tensor],
    v: Tensor,  # (n,)
    rank: int,
) -> Krylov:
    """Build the Krylov space of v by Lanczos iterations with reorthogonalisation.

    Args:
        product: Function u -> g u, shapes (n,), for a symmetric g.
        v: First vector; for zero the basis is one zero vector.
        rank: Largest dimension k and number of products. The space is smaller if it is invariant
            under g up to rounding.

    Returns:
        The space.

    Raises:
        NumericalError: If v or a product is not finite.
    """
    length = float(v.double().norm())
    basis = v.new_empty(min(rank, len(v)), len(v))
    t = torch.zeros(len(basis), len(basis), dtype=torch.float64, device=v.device)
    q = v / length if length > 0 else v
    remainder = 0.0
    for k in range(len(basis)):
        basis[k] = q
        known = basis[: k + 1]
        r = product(q)
        t[k, k] = q.double() @ r.double()
        for _ in range(2):  # one projection leaves rounding along the leading Ritz vectors
            r = r - (known @ r) @ known
        remainder = float(r.double().norm())
        if not remainder < float("inf"):
            raise NumericalError(
                "a product with the metric is not finite, expected numbers; check the weights and "
                "the direction"
            )
        scale = float(t.abs().max())
        if k + 1 == len(basis) or remainder <= 100 * torch.finfo(v.dtype).eps * scale:
            break
        t[k, k + 1] = t[k + 1, k] = remainder
        q = r / remainder
    values, vectors = torch.linalg.eigh(t[: k + 1, : k + 1])
    return Krylov(basis[: k + 1], values.clamp(min=0), vectors, length, remainder)
