r"""Several Kronecker metrics of one network -> one for their sum.

:math:`\sum_i A_i \otimes B_i \approx (\sum_i A_i) \otimes \frac1k \sum_i B_i`: exact where the
layers' inputs or the gradients at their outputs have one second moment in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.metric.factor import Factor, factorise
from geomerge.metric.kronecker import KroneckerLayer, KroneckerMetric

__all__ = ["combine"]


def combine(metrics: Sequence[KroneckerMetric], *, mean: bool = False) -> KroneckerMetric:
    """Return a Kronecker metric for the sum, or the mean, of metrics on the same weights.

    Measured on three networks (MNIST, Fashion-MNIST, rotated MNIST), keeping two functions by the
    sum of their sketches lost 4 points at most; with the Kronecker product nearest to the sum in
    the Frobenius norm it was 11: that one follows the largest term and forgets the others.

    Args:
        metrics: At least one, all of one network.
        mean: Whether to divide by their number.
    """
    share = 1 / len(metrics) if mean else 1.0
    first = metrics[0]
    if len(metrics) == 1:
        return first
    layers = []
    # A restored sketch lists its layers by name, a new measurement in the order of the network.
    ordered = [sorted(m.layers, key=lambda layer: layer.weight.start) for m in metrics]
    for same in zip(*ordered, strict=True):
        layers.append(
            KroneckerLayer(
                same[0].name,
                same[0].weight,
                same[0].bias,
                _sum([layer.inputs for layer in same], share),
                _sum([layer.outputs for layer in same], 1 / len(same)),
            )
        )
    diagonal = share * torch.stack([m.diagonal for m in metrics]).sum(dim=0)
    return KroneckerMetric(first.n, tuple(layers), first.rest, diagonal, first.rest_names)


def _sum(factors: list[Factor], scale: float) -> Factor:
    like: Tensor = factors[0].vectors
    total = scale * sum((f.dense().double() for f in factors), torch.zeros((), device=like.device))
    return factorise(total).to(like.dtype, like.device)
