r"""Several Kronecker metrics of one network -> one for their sum.

:math:`\sum_i A_i \otimes B_i \approx (\sum_i A_i) \otimes \frac1k \sum_i B_i`: exact where the
layers' inputs or the gradients at their outputs have one second moment in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.metric.factor import Factor, factorise
from geomerge.metric.kronecker import KroneckerMetric
from geomerge.metric.kronecker_layer import KroneckerLayer

__all__ = ["combine"]


def combine(metrics: Sequence[KroneckerMetric], *, mean: bool = False) -> KroneckerMetric:
    """Return a Kronecker metric for the sum, or the mean, of metrics on the same weights.

    Measured on three networks (MNIST, Fashion-MNIST, rotated MNIST), keeping two functions by the
    sum of their sketches lost 4 points at most; with the Kronecker product nearest to the sum in
    the Frobenius norm it was 11: that one follows the largest term and forgets the others.

    Args:
        metrics: At least one, all of one network. A layer that only some of them cover, such as
            one head of several, is the sum of those; the others do not depend on it.
        mean: Whether to divide by their number.
    """
    share = 1 / len(metrics) if mean else 1.0
    first = metrics[0]
    if len(metrics) == 1:
        return first
    same: dict[int, list[KroneckerLayer]] = {}
    for metric in metrics:
        for layer in metric.layers:
            same.setdefault(layer.weight.start, []).append(layer)
    layers = [
        KroneckerLayer(
            one[0].name,
            one[0].weight,
            one[0].bias,
            _sum([layer.inputs for layer in one], share),
            _sum([layer.outputs for layer in one], 1 / len(one)),
        )
        for _, one in sorted(same.items())
    ]
    # The rest of one metric may be a layer of another.
    held = [span for layer in layers for span in (layer.weight, layer.bias) if span]
    rest: dict[int, tuple[slice, str, Tensor]] = {}
    for metric in metrics:
        sizes = [span.stop - span.start for span in metric.rest]
        names = metric.rest_names or ("",) * len(sizes)
        for span, name, part in zip(metric.rest, names, metric.diagonal.split(sizes), strict=True):
            if any(s.start <= span.start and span.stop <= s.stop for s in held):
                continue
            before = rest.get(span.start)
            total = share * part if before is None else before[2] + share * part
            rest[span.start] = (span, name, total)
    spans, names, parts = zip(*rest.values(), strict=True) if rest else ((), (), ())
    diagonal = torch.cat(parts) if parts else first.diagonal.new_zeros(0)
    return KroneckerMetric(
        first.n, tuple(layers), spans, diagonal, names if first.rest_names else ()
    )


def _sum(factors: list[Factor], scale: float) -> Factor:
    like: Tensor = factors[0].vectors
    total = scale * sum((f.dense().double() for f in factors), torch.zeros((), device=like.device))
    return factorise(total).to(like.dtype, like.device)
