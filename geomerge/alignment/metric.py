"""A metric measured at a network -> the same at that network with its units permuted, exactly."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from geomerge.alignment.align import Alignment
from geomerge.metric import KroneckerMetric
from geomerge.metric.factor import Factor
from geomerge.metric.kronecker_layer import KroneckerLayer

__all__ = ["permuted_metric"]


def permuted_metric(metric: KroneckerMetric, alignment: Alignment) -> KroneckerMetric:
    """Return P g P', what would be measured at the permuted weights on the same inputs.

    Args:
        metric: Measured at the weights that were permuted.
        alignment: The permutation.
    """
    source = alignment.source.cpu()
    layers = tuple(_permuted_layer(layer, source) for layer in metric.layers)
    diagonal = metric.diagonal
    if metric.rest:
        rest = torch.cat([torch.arange(place.start, place.stop) for place in metric.rest])
        diagonal = diagonal[_places(rest, source[rest], metric.n).to(diagonal.device)]
    return replace(metric, layers=layers, diagonal=diagonal)


def _permuted_layer(layer: KroneckerLayer, source: Tensor) -> KroneckerLayer:
    old = layer.matrix(torch.arange(len(source)))  # (d_out, d_in)
    places = _places(old, layer.matrix(source), len(source))
    width = old.shape[1]
    rows, columns = places[:, 0] // width, places[0] % width
    assert torch.equal(places, rows[:, None] * width + columns), "units are whole rows and columns"
    return replace(
        layer,
        inputs=_permuted_factor(layer.inputs, columns),
        outputs=_permuted_factor(layer.outputs, rows),
    )


def _permuted_factor(factor: Factor, order: Tensor) -> Factor:
    return replace(factor, vectors=factor.vectors[order.to(factor.vectors.device)])


def _places(entries: Tensor, wanted: Tensor, n: int) -> Tensor:
    """Return where in ``entries`` the wanted ones stand, places of a vector of length n."""
    where = torch.empty(n, dtype=torch.int64)
    where[entries.reshape(-1)] = torch.arange(entries.numel())
    return where[wanted]
