"""Alignment of networks: a permutation of units that minimises the distance of two networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from geomerge.alignment.activations import match_activations
from geomerge.alignment.groups import PermutationGroup, find_groups
from geomerge.alignment.weights import match_weights
from geomerge.data import Inputs, as_they_are
from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.expert_like import ExpertLike, as_experts
from geomerge.metrics import KroneckerMetric, Sketch
from geomerge.metrics.kronecker.factor import Factor
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.batches import Batch, concat
from geomerge.networks.network import Network
from geomerge.options import check_known

__all__ = [
    "METHODS",
    "Alignment",
    "align",
    "align_weights",
    "permuted_metric",
    "pooled_inputs",
]

METHODS = ("weights", "activations")
_INPUTS = 2000  # inputs, of all networks together


@dataclass(frozen=True, eq=False)
class Alignment:
    """A permutation of a network's units.

    Attributes:
        method: Method, one of :data:`METHODS`; in a merge also ``"rotations"``, with which networks
            were rotated before.
        source: Index in the weight vector of each entry of the permuted one, shape (n,), int64, on
            the device of the weights.
        groups: Number of units of each group, by the name of its first layer.
        moved: Number of units of each group that are permuted, by the same name.
        fixed: Reason why a layer's units are not permuted, as the end of a sentence, by its name.
        before: Distance of the two networks' parameters (without running statistics) before it.
        after: Distance after the permutation.
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
        """Return weights, or other numbers per weight, in the new order."""
        return v[self.source]

    def aligned(self, expert: Expert) -> Expert:
        """Return the network with permuted units and a sketch permuted accordingly.

        Args:
            expert: Network b of the alignment.
        """
        sketch = expert.sketch
        if sketch is not None:
            sketch = Sketch(permuted_metric(sketch.metric, self), sketch.meta)
        return replace(expert, weights=self.permute(expert.weights), sketch=sketch)


def align(a: ExpertLike, b: ExpertLike, *, method: str = "weights", seed: int = 0) -> Alignment:
    """Permute the units of b to bring it close to a, without changing its function.

    Units are the outputs of all Linear layers and convolutions except the last, tied as in the
    forward pass by norms, activations, flattening and residual sums. Units that cannot be traced
    (attention, grouped convolutions) are not permuted.

    Args:
        a: Expert, module or file of the reference network.
        b: Expert, module or file of the network to permute, of the same architecture.
        method: ``"weights"`` minimises the distance of the parameters by coordinate descent over
            the groups (Ainsworth et al. 2023). ``"activations"`` maximises the correlation of the
            layers' outputs on inputs (Li et al. 2015). Running statistics are permuted with their
            units.
        seed: Seed of the descent, or of the choice of inputs.

    Returns:
        The alignment; :meth:`~Alignment.aligned` returns the permuted b.

    Raises:
        OptionError: If the method is unknown, there are no inputs to trace the network with, the
            architectures differ, or the network cannot be traced.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.alignment import align
        >>> _ = torch.manual_seed(0)
        >>> module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> a = gm.Expert.from_module(module, inputs=torch.randn(20, 4))
        >>> parts, order = a.network.unravel(a.weights), torch.randperm(6)
        >>> _ = module.load_state_dict({  # the same network with permuted hidden units
        ...     "0.weight": parts["0.weight"][order], "0.bias": parts["0.bias"][order],
        ...     "2.weight": parts["2.weight"][:, order], "2.bias": parts["2.bias"],
        ... })
        >>> b = gm.Expert.from_module(module)
        >>> found = align(a, b)
        >>> bool(torch.equal(found.aligned(b).weights, a.weights)), found.groups
        (True, {'0': 6})
    """
    first, second = as_experts([a, b])
    if first.network.shapes != second.network.shapes:
        raise OptionError(
            f"{first.source} and {second.source} are not of one architecture; give networks of the "
            "same make"
        )
    inputs = pooled_inputs([first, second], seed)
    _, found = align_weights(
        first.network, first.weights, second.weights, method=method, inputs=inputs, seed=seed
    )
    return found


def align_weights(
    network: Network,
    a: Tensor,  # (n,)
    b: Tensor,  # (n,)
    *,
    method: str = "weights",
    inputs: Inputs | None = None,
    seed: int = 0,
    example: Batch | None = None,  # (B, ...)
) -> tuple[Tensor, Alignment]:
    """Permute the units of weights b to bring them close to weights a of the same network.

    Args:
        network: Network of both weights.
        a: Reference weights.
        b: Weights to permute, of the same dtype.
        method: Method, as of :func:`align`.
        inputs: Unlabelled inputs, required for ``"activations"``.
        seed: Seed of the descent, or of the choice of inputs.
        example: Inputs to trace the network with; None takes the first of ``inputs``.

    Returns:
        The permuted b, and the permutation.

    Raises:
        OptionError: If the method is unknown, required inputs are missing, or the network cannot be
            traced.
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
    # Running variances can exceed parameters by orders of magnitude and would dominate.
    first, second = (torch.where(network.trained, w, 0.0) for w in (a, b))
    if method == "weights":
        source = match_weights(groups, first, second, seed)
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
        float((second - first).double().norm()),
        float((second[source] - first).double().norm()),
    )
    return b[source], found


def pooled_inputs(experts: Sequence[Expert], seed: int) -> Inputs:
    """Return inputs of all experts with a common shape, each with its own normalisation.

    Args:
        experts: Experts with inputs, or with tasks, whose training inputs are used.
        seed: Seed of the samples.

    Raises:
        OptionError: If there are no inputs.
    """
    given = [expert.inputs for expert in experts if expert.inputs is not None]
    if not given:
        given = [expert.task.train.inputs for expert in experts if expert.task is not None]
    if not given:
        raise OptionError(
            "expected inputs of a task to align networks with, got none; name one with `inputs`, "
            "or leave out `align`"
        )
    alike = [x for x in given if x.shape == given[0].shape]
    samples = [x.sample(_INPUTS // len(alike), seed).batch(slice(None)) for x in alike]
    return as_they_are(concat(samples), given[0].device)


def _moved(group: PermutationGroup, source: Tensor) -> int:
    """Return the number of permuted units of a group, read from one of its tensors."""
    part = group.units.parts[0]
    inner = torch.Size(part.shape[part.dim + 1 :]).numel()
    entries = (source[part.span].view(part.shape) - part.start) // inner % part.shape[part.dim]
    came_from = entries.movedim(part.dim, 0).flatten(1)[:, 0]
    changed = came_from != torch.arange(len(came_from))
    return int(changed[part.indices].any(dim=1).sum())


def permuted_metric(metric: KroneckerMetric, alignment: Alignment) -> KroneckerMetric:
    """Return P g P', the metric at the permuted weights on the same inputs.

    Args:
        metric: Metric at the weights before the permutation.
        alignment: Alignment with the permutation P.
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
    return factor.with_vectors(factor.vectors[order.to(factor.vectors.device)])


def _places(entries: Tensor, wanted: Tensor, n: int) -> Tensor:
    """Return the positions of ``wanted`` in ``entries``, both indices of a vector of length n."""
    where = torch.empty(n, dtype=torch.int64)
    where[entries.reshape(-1)] = torch.arange(entries.numel())
    return where[wanted]
