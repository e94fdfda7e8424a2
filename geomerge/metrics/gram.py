r"""Exact pullback metric of one batch, from the eigendecomposition of its Gram matrix.

With :math:`J J' / N = U \Lambda U'` the eigenvectors of g = J'J / N are
:math:`J' U \Lambda^{-1/2} / \sqrt N`, and all directions orthogonal to them have eigenvalue zero.
The decomposed matrix is N m x N m, whatever the number of weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.metrics.base import EigenCoordinates, Metric
from geomerge.metrics.kernel import gram_matrix
from geomerge.metrics.kronecker.factor import decompose
from geomerge.metrics.linearisation import Linearisation
from geomerge.metrics.registry import NetworkSize, metric
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network

__all__ = ["GramMetric", "gram_metric"]


class GramMetric(Metric):
    """Pullback metric of arXiv 2012.09605, eq. (2), as a mean over inputs.

    Args:
        linearised: Network linearised at w on the inputs.
        kernel: Gram matrix J J', shape (M, M), M = N m, float64.
    """

    name = "gram"

    def __init__(self, linearised: Linearisation, kernel: Tensor) -> None:
        self._linearised = linearised
        self.count = len(linearised.outputs)  # N
        whole = decompose(kernel / self.count)
        # Singular values of J below 100 eps of the largest are noise (measured in float32; the
        # kernel is computed in float64 from rounded derivatives).
        rounded = (100 * torch.finfo(linearised.outputs.dtype).eps) ** 2
        least = max(rounded, len(kernel) * torch.finfo(torch.float64).eps)
        keep = whole.values > whole.values[0] * least
        self.values = whole.values[keep]  # (r,)
        self.vectors = whole.vectors[:, keep]  # (M, r)

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' g v."""
        first = self._linearised.push(u)
        second = first if u is v else self._linearised.push(v)
        return float((first.double() * second.double()).sum()) / self.count

    def coordinates(
        self,
        v: Tensor,  # (n,)
    ) -> EigenCoordinates:
        """Return v along the eigenvectors of nonzero eigenvalues, and its orthogonal remainder."""
        pushed = self._linearised.push(v).double().reshape(-1)
        part = self.vectors.T @ pushed / (self.count * self.values).sqrt()
        rest = v - self._along(part)
        return EigenCoordinates(
            [part, rest],
            [self.values, torch.zeros_like(rest[0])],
            lambda parts: self._along(parts[0]) + parts[1],
        )

    def _along(
        self,
        part: Tensor,  # (r,)
    ) -> Tensor:  # (n,)
        outputs = self._linearised.outputs
        p = self.vectors @ (part / (self.count * self.values).sqrt())
        return self._linearised.pull(p.to(outputs.dtype).view(outputs.shape))


def gram_metric(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (N, ...)
    output: str = "hellinger",
) -> GramMetric:
    """Measure the exact metric of a network at w on one batch.

    Args:
        network: Network to measure.
        w: Weights at which to measure.
        x: Inputs, shape (N, ...). With m outputs the cost is O((N m)^3), fast for N m up to some
            thousands.
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.

    Returns:
        The metric.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.metrics import gram_metric
        >>> _ = torch.manual_seed(0)
        >>> network = gm.Network(nn.Linear(3, 2))
        >>> metric = gram_metric(network, network.initial, torch.eye(3), "logits")
        >>> len(metric.values)  # three inputs with two outputs: six directions change them
        6
        >>> bias = torch.tensor([0.0] * 6 + [1.0, 0.0])
        >>> round(metric.inner(bias, bias), 5)  # one logit moves by one
        1.0
    """
    return GramMetric(*gram_matrix(network, w, x, output))


_ROWS = 1024  # largest N m; the decomposition then takes less than a second
_TYPICAL = 100  # number of inputs for ten outputs


def _bytes(sizes: Sequence[NetworkSize]) -> int:
    return len(sizes) * _TYPICAL * max(size.pass_bytes for size in sizes)


@metric(
    GramMetric, "exact pullback metric of some hundred inputs, in its eigenbasis",
    cheaper="kronecker", measuring_bytes=_bytes,
)  # fmt: skip
def _measure(network: Network, w: Tensor, inputs: Inputs, output: str, seed: int) -> GramMetric:
    m = network.logits(w, inputs.batch(slice(0, 1))).shape[1]
    sample = inputs.sample(max(1, _ROWS // m), seed)
    return gram_metric(network, w, sample.batch(slice(None)), output)
