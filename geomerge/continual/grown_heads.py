"""Weights and metrics of a network whose heads have grown, in the larger weight space.

Heads grow along a stream: rows are added to a classifier, or whole heads. A metric measured before
is zero at new weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.factor import Factor
from geomerge.networks.network import Network, places

__all__ = ["Shapes", "carry_metric", "carry_weights"]

Shapes = Mapping[str, torch.Size]


def carry_weights(
    w: Tensor,  # (n_old,)
    shapes: Shapes,
    network: Network,
    new: Tensor,  # (n,)
) -> Tensor:  # (n,)
    """Return old weights in the places of a grown network.

    Args:
        w: Weights of the old network.
        shapes: Shapes of the old network's tensors.
        network: Grown network.
        new: Weights of the grown network, for the entries that the old one lacks.

    Raises:
        OptionError: If a tensor has changed other than by more rows.
    """
    carried = new.clone()
    for name, old in places(shapes).items():
        carried[_place(name, shapes, network)] = w[old].to(new)
    return carried


def carry_metric(metric: KroneckerMetric, shapes: Shapes, network: Network) -> KroneckerMetric:
    """Return a metric on the weights of a grown network, zero on new weights.

    Args:
        metric: Metric on the old weights.
        shapes: Shapes of the old network's tensors.
        network: Grown network.

    Raises:
        OptionError: If a tensor has changed other than by more rows.
    """
    if dict(shapes) == network.shapes:
        return metric
    old = places(shapes)
    new = {name: _place(name, shapes, network) for name in old}

    def moved(span: slice) -> tuple[slice, int]:
        """Return the new place of a span, and the number of rows added behind its tensor."""
        name = next(k for k, place in old.items() if place.start <= span.start < place.stop)
        start = new[name].start + span.start - old[name].start
        whole = (span.start, span.stop) == (old[name].start, old[name].stop)
        added = network.shapes[name][0] - shapes[name][0] if whole and shapes[name] else 0
        return slice(start, start + span.stop - span.start), added

    layers = []
    for layer in metric.layers:
        weight, added = moved(layer.weight)
        columns = (weight.stop - weight.start) // layer.outputs.size
        bias = None if layer.bias is None else moved(layer.bias)[0]
        layers.append(
            replace(
                layer,
                weight=slice(weight.start, weight.stop + added * columns),
                bias=None if bias is None else slice(bias.start, bias.stop + added),
                outputs=_padded(layer.outputs, added),
                leading_blocks=None,
            )
        )
    rest = [moved(span)[0] for span in metric.rest]
    held = [s for layer in layers for s in (layer.weight, layer.bias) if s is not None] + rest
    names = list(metric.diagonal_only)
    for name, place in network.slices.items():  # new tensors, and new rows of the rest
        start = max(
            [s.stop for s in held if place.start <= s.start < place.stop], default=place.start
        )
        if start < place.stop:
            rest.append(slice(start, place.stop))
            names.append(name)
    zeros = metric.diagonal.new_zeros(sum(s.stop - s.start for s in rest[len(metric.rest) :]))
    diagonal = torch.cat([metric.diagonal, zeros])
    return KroneckerMetric(network.n, tuple(layers), tuple(rest), diagonal, tuple(names))


def _place(name: str, shapes: Shapes, network: Network) -> slice:
    """Return the place of an old tensor in the grown network; new rows come behind it."""
    old, new = shapes[name], network.shapes.get(name)
    if new is None or len(old) != len(new) or old[1:] != new[1:] or (old and old[0] > new[0]):
        raise OptionError(
            f"{name} had shape {tuple(old)} when a task was remembered and has "
            f"{None if new is None else tuple(new)} now, expected as many rows or more; only heads "
            "may grow along a stream"
        )
    start = network.slices[name].start
    return slice(start, start + old.numel())


def _padded(factor: Factor, added: int) -> Factor:
    """Return a factor of more outputs, zero on the new ones."""
    if not added:
        return factor
    size, rank = factor.vectors.shape
    vectors = torch.zeros(size + added, rank + added).to(factor.vectors)
    vectors[:size, :rank] = factor.vectors
    vectors[size:, rank:] = torch.eye(added)
    return Factor(vectors, torch.cat([factor.values, factor.values.new_zeros(added)]), factor.tail)
