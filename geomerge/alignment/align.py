"""Two networks of one architecture -> the second with its units in the order of the first's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from geomerge.alignment.activations import match_activations
from geomerge.alignment.groups import PermutationGroup, find_groups
from geomerge.alignment.weights import match_weights
from geomerge.data import Inputs
from geomerge.errors import OptionError
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.factor import Factor
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.options import check_known

__all__ = ["METHODS", "Alignment", "align", "permuted_metric"]

METHODS = ("weights", "activations")


@dataclass(frozen=True, eq=False)
class Alignment:
    """A permutation of a network's units.

    Attributes:
        method: One of :data:`METHODS`.
        source: Where each entry of the permuted weight vector comes from, shape (n,), int64,
            where the weights are.
        groups: By the first layer of each group of units, how many they are.
        moved: By the same name, how many changed their place.
        fixed: By layer, why its units stayed: the end of a sentence.
        before: Distance of the two networks' parameters, running statistics left out, as they came.
        after: The same with the units in their new order.
    """

    method: str
    source: Tensor = field(repr=False)
    groups: Mapping[str, int]
    moved: Mapping[str, int]
    fixed: Mapping[str, str]
    before: float
    after: float

    def permute(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights, or what there is one of for each, in the new order."""
        return v[self.source]


def align(
    network: Network,
    a: Tensor,  # (n,)
    b: Tensor,  # (n,)
    *,
    method: str = "weights",
    inputs: Inputs | None = None,
    seed: int = 0,
    example: Batch | None = None,  # (B, ...)
) -> tuple[Tensor, Alignment]:
    """Permute the units of b so that it is near a; its function stays.

    Units are those of all Linear layers and convolutions but the last, as the network's own
    forward pass ties them: through norms, activations, flattening and residual sums. Where it ties
    them in a way that cannot be followed (attention, convolutions in groups) they stay.

    Args:
        network: The network of both.
        a: The weights to come near to.
        b: The weights to permute, of the same type.
        method: ``"weights"``: least distance of the parameters, by coordinate descent over the
            groups (Ainsworth et al. 2023); it never grows. ``"activations"``: largest correlation
            of the layers' outputs on inputs (Li et al. 2015). Running statistics move along.
        inputs: Unlabelled inputs, for ``"activations"``.
        seed: Of the descent, or of the choice of inputs.
        example: Some inputs to trace the network with; those of ``inputs`` unless given.

    Returns:
        The permuted b, and what was done.

    Raises:
        OptionError: If the method is unknown, inputs that it needs are missing, or the network
            cannot be traced.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.alignment import align
        >>> _ = torch.manual_seed(0)
        >>> module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> network, order = gm.Network(module), torch.randperm(6)
        >>> a = network.initial
        >>> parts = network.unravel(a)
        >>> b = network.ravel({  # the same network, its hidden units in another order
        ...     "0.weight": parts["0.weight"][order], "0.bias": parts["0.bias"][order],
        ...     "2.weight": parts["2.weight"][:, order], "2.bias": parts["2.bias"],
        ... })
        >>> back, found = align(network, a, b, example=torch.randn(2, 4))
        >>> bool(torch.equal(back, a)), found.groups
        (True, {'0': 6})
    """
    check_known("alignment", method, METHODS)
    if example is None and inputs is not None:
        example = inputs.batch(slice(0, 2))
    if example is None or (method == "activations" and inputs is None):
        raise OptionError(
            f"expected inputs to align units by {method}, got none; give some of the network's "
            "inputs, labels are not needed"
        )
    groups, fixed = find_groups(network, b, example)
    # Variances of hundreds beside weights of hundredths would decide everything.
    one, two = (torch.where(network.trained, w, 0.0) for w in (a, b))
    if method == "weights":
        source = match_weights(groups, one, two, seed)
    else:
        assert inputs is not None
        source = match_activations(network, groups, a, b, inputs, seed)
    source = source.to(b.device)
    found = Alignment(
        method,
        source,
        {group.units.layer: group.count for group in groups},
        {group.units.layer: _moved(group, source.cpu()) for group in groups},
        fixed,
        float((two - one).double().norm()),
        float((two[source] - one).double().norm()),
    )
    return b[source], found


def _moved(group: PermutationGroup, source: Tensor) -> int:
    """Return how many units of a group changed their place, seen in one tensor that they touch."""
    part = group.units.parts[0]
    inner = torch.Size(part.shape[part.dim + 1 :]).numel()
    entries = (source[part.span].view(part.shape) - part.start) // inner % part.shape[part.dim]
    came_from = entries.movedim(part.dim, 0).flatten(1)[:, 0]
    changed = came_from != torch.arange(len(came_from))
    return int(changed[part.indices].any(dim=1).sum())


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
