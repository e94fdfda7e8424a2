"""Heads with outputs for several tasks, by protocol: ``shared``, ``offset`` or ``separate``.

- ``shared``: class k of every task is output k. The output leaves the task open.
- ``offset``: the classes of b come after those of a: one larger head, task unknown.
- ``separate``: a block of outputs each, and the task of every input is known.

These are the field's domain-, class- and task-incremental settings (van de Ven & Tolias 2019).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.metrics.kronecker.factor import Factor, factorise
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.networks.architectures.rebuild import resize_layers
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network

__all__ = ["HEADS", "Heads", "arrange_heads", "linear_layers", "own_layers", "widen_metric"]

HEADS = ("shared", "offset", "separate")
# By how much the biases of the others' outputs are lowered in an offset head: the network must not
# answer with classes that it never saw. Their weights are those that the others learned; from zero
# a walk learned them far worse (MNIST, Fashion-MNIST by sketch: 77 / 81 against 57 / 89).
_LOWERED = 5.0


@dataclass(frozen=True)
class Heads:
    """Places of each expert's outputs in the common head, by the expert's name.

    Attributes:
        protocol: One of :data:`HEADS`.
        layer: Name of the last linear layer; None in a shared head.
        columns: Outputs of an expert's task: all of them, or a block of its own.
        offsets: Output of the first class of an expert's task.
        rows: Rows of the last layer that are an expert's own.
        hidden: Names of the linear layers before the last one that are the heads' too, in order,
            such as the pooler of a BERT, and the rows of each that are an expert's own.
    """

    protocol: str
    layer: str | None
    columns: dict[str, slice]
    offsets: dict[str, int]
    rows: dict[str, slice]
    hidden: dict[str, dict[str, slice]] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """Names of the layers of the heads, in the order in which they compute."""
        return [] if self.layer is None else [*self.hidden, self.layer]

    @property
    def separate_layers(self) -> list[str]:
        """Names of the layers of separate heads; none in an offset head, whose rows compete."""
        return self.layers if self.protocol == "separate" else []

    def place(self, layer: str, name: str) -> tuple[slice, slice]:
        """Return the rows and the columns of a head's layer that are an expert's own.

        Args:
            layer: Name of the layer, one of :attr:`layers`.
            name: Name of the expert.
        """
        before = self.layers.index(layer) - 1
        rows = self.rows[name] if layer == self.layer else self.hidden[layer][name]
        return rows, slice(None) if before < 0 else self.hidden[self.layers[before]][name]

    def fixed(self, network: Network) -> Tensor | None:  # (n,), bool
        """Return the mask of the weights between heads, which are zero and stay so; None if none.

        Args:
            network: Network with all heads.
        """
        if not self.hidden:
            return None
        mask = torch.zeros(network.n, dtype=torch.bool, device=network.device)
        for layer in self.layers[1:]:
            name = f"{layer}.weight"
            between = torch.ones(network.shapes[name], dtype=torch.bool, device=network.device)
            for expert in self.rows:
                between[self.place(layer, expert)] = False
            mask[network.slices[name]] = between.reshape(-1)
        return mask


def arrange_heads(
    experts: Sequence[Expert], protocol: str, base: Expert | None = None
) -> tuple[Network, Heads, list[Tensor]]:
    """Return a network with one head that has room for every task, and all weights of it.

    Args:
        experts: Experts; in an offset or separate head their last ``nn.Linear`` must be the head.
        protocol: One of :data:`HEADS`.
        base: Common ancestor of the experts. In separate heads the linear layers right before the
            last one that it does not have are the heads' too, not the trunk's.

    Returns:
        The network, the places of each expert's outputs, and the weights of each expert with the
        common head, shape (n,).

    Raises:
        CheckpointError: If a network has no linear layer to widen.
    """
    names = [expert.name for expert in experts]
    first = experts[0]
    if protocol == "shared":
        whole = first.network.head_view(slice(None))
        columns = {expert.name: expert.network.columns for expert in experts}
        places = Heads(
            protocol, None, columns, dict.fromkeys(names, 0), dict.fromkeys(names, slice(None))
        )
        return whole, places, [expert.weights for expert in experts]
    layers = linear_layers(first.network.module, first.source)
    chain = [layers[-1]]
    if protocol == "separate" and base is not None:
        chain = own_layers(first.network.module, layers, base.network.shapes)
    found = _arranged(experts, protocol, chain)
    if len(chain) > 1 and not _same_functions(experts, *found):
        return _arranged(experts, protocol, chain[-1:])
    return found


def _arranged(
    experts: Sequence[Expert], protocol: str, chain: list[str]
) -> tuple[Network, Heads, list[Tensor]]:
    names, first = [expert.name for expert in experts], experts[0]
    tensors = [expert.network.unravel(expert.weights) for expert in experts]
    rows = {layer: _stacked_rows([own[f"{layer}.weight"] for own in tensors]) for layer in chain}
    last = rows[chain[-1]]
    if protocol == "offset":
        seen, offsets = [slice(None)] * len(experts), [row.start for row in last]
    else:
        own_columns = [expert.network.columns for expert in experts]
        seen = [_within(*pair) for pair in zip(last, own_columns, strict=True)]
        offsets = [0] * len(experts)
    wide = [_widened(tensors, chain, own, protocol) for own in range(len(experts))]
    module = first.network.module_at(first.weights)
    resize_layers(module, wide[0])
    module.load_state_dict(wide[0], strict=False)
    paged.give_back()
    network = first.network.head_view(slice(None)).alike(module)
    heads = Heads(
        protocol,
        chain[-1],
        dict(zip(names, seen, strict=True)),
        dict(zip(names, offsets, strict=True)),
        dict(zip(names, last, strict=True)),
        {layer: dict(zip(names, rows[layer], strict=True)) for layer in chain[:-1]},
    )
    # The module was loaded with the first expert's weights: no second copy of them.
    return network, heads, [network.initial, *(network.ravel(weights) for weights in wide[1:])]


def _stacked_rows(matrices: Sequence[Tensor]) -> list[slice]:
    """Return the rows of each of several matrices that are put below each other."""
    starts = [0, *accumulate(len(matrix) for matrix in matrices)]
    return [slice(*pair) for pair in pairwise(starts)]


def own_layers(module: nn.Module, layers: list[str], known: Collection[str]) -> list[str]:
    """Return the last linear layers that a base does not have, each fed by the one before.

    Args:
        module: Module.
        layers: Names of its linear layers, in order.
        known: Names of the tensors of the base.
    """
    chain = [layers[-1]]
    for name in layers[-2::-1]:
        layer, after = module.get_submodule(name), module.get_submodule(chain[0])
        if f"{name}.weight" in known or layer.out_features != after.in_features:
            break
        chain.insert(0, name)
    return chain


def _same_functions(
    experts: Sequence[Expert], network: Network, heads: Heads, weights: list[Tensor]
) -> bool:
    """Return whether every expert's block of heads computes what its own head did.

    Between layers of a head only operations on each unit alone may stand, such as tanh.
    """
    for expert, w in zip(experts, weights, strict=True):
        x = _sample(expert)
        if x is None:
            continue
        own = expert.network.logits(expert.weights, x)
        block = network.head_view(heads.columns[expert.name]).logits(w, x)
        if not torch.allclose(own, block, rtol=1e-3, atol=1e-4):
            return False
    return True


def _sample(expert: Expert) -> Batch | None:
    """Return a few inputs of an expert, else those that transformers makes up for its models."""
    if expert.inputs is not None:
        return expert.inputs.batch(slice(0, 4))
    made = getattr(expert.network.module, "dummy_inputs", None)
    if not isinstance(made, dict) or not all(isinstance(v, Tensor) for v in made.values()):
        return None
    return {name: value.to(expert.network.device) for name, value in made.items()}


def _within(rows: slice, columns: slice) -> slice:
    """Return the place of some of a network's outputs among all, from those of the network."""
    start, stop, _ = columns.indices(rows.stop - rows.start)
    return slice(rows.start + start, rows.start + stop)


def _widened(
    tensors: Sequence[Mapping[str, Tensor]], chain: list[str], own: int, protocol: str
) -> dict[str, Tensor]:
    """Return a network's tensors with the rows of all heads, those of the others lowered."""
    weights = dict(tensors[own])
    for layer in chain:
        matrices = [part[f"{layer}.weight"] for part in tensors]
        inner = layer != chain[0]  # each head sees only its own units of the layer before
        weights[f"{layer}.weight"] = torch.block_diag(*matrices) if inner else torch.cat(matrices)
        name = f"{layer}.bias"
        if name in weights:
            lowered = _LOWERED if protocol == "offset" else 0.0
            parts = [part[name] - (0.0 if i == own else lowered) for i, part in enumerate(tensors)]
            weights[name] = torch.cat(parts)
    return weights


def widen_metric(
    metric: KroneckerMetric, narrow: Network, wide: Network, heads: Heads, name: str
) -> KroneckerMetric:
    """Carry a metric over to a network whose head was widened.

    Outputs that the network never used count, in an offset head, as much as its own do on average:
    they must stay low on its inputs. In separate heads they are free.

    Args:
        metric: Metric of an expert's original network.
        narrow: Original network of the expert.
        wide: Network with the common head.
        heads: Places of the outputs in the common head.
        name: Name of the expert.
    """
    if heads.layer is None:
        return metric
    own = {narrow.slices[f"{layer}.weight"].start: layer for layer in heads.layers}
    layers = []
    for layer in metric.layers:
        inputs, outputs = layer.inputs, layer.outputs
        if layer.weight.start in own:
            head = own[layer.weight.start]
            unused = outputs.trace / len(outputs.vectors) if heads.protocol == "offset" else 0.0
            total, width = wide.shapes[f"{head}.weight"]
            rows, columns = heads.place(head, name)
            outputs = _widen(outputs, total, list(range(total)[rows]), unused)
            if head != heads.layers[0]:
                bias = [] if layer.bias is None else [width]  # the last column is the bias
                inputs = _widen(
                    inputs, width + len(bias), [*range(width)[columns], *bias], 0.0
                )  # fmt: skip
        layers.append(
            replace(
                layer,
                weight=_moved(layer.weight, narrow, wide),
                bias=_moved(layer.bias, narrow, wide) if layer.bias is not None else None,
                inputs=inputs,
                outputs=outputs,
                leading_blocks=None,
            )
        )
    rest = tuple(wide.slices[name] for name in metric.diagonal_only)
    return KroneckerMetric(wide.n, tuple(layers), rest, metric.diagonal, metric.diagonal_only)


def _moved(place: slice, narrow: Network, wide: Network) -> slice:
    """Return the places of weights in the wide network: a whole tensor, or rows inside of one."""
    name, owner = next(
        (k, s) for k, s in narrow.slices.items() if s.start <= place.start and place.stop <= s.stop
    )
    start = wide.slices[name].start
    if (place.start, place.stop) == (owner.start, owner.stop):
        return wide.slices[name]
    return slice(start + place.start - owner.start, start + place.stop - owner.start)


def _widen(factor: Factor, total: int, places: list[int], unused: float) -> Factor:
    own = factor.dense().double()
    matrix: Tensor = unused * torch.eye(total, dtype=own.dtype, device=own.device)
    index = torch.tensor(places, device=own.device)
    matrix[index[:, None], index] = own
    return factorise(matrix).to(factor.vectors.dtype, factor.vectors.device)


def linear_layers(module: nn.Module, source: str) -> list[str]:
    """Return the names of a module's linear layers, in order.

    Args:
        module: Module.
        source: Name of the network, for the error.

    Raises:
        CheckpointError: If there are none.
    """
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise CheckpointError(
            f"{source} has no linear layer whose outputs could be widened, expected one as its "
            "head; use `head` shared"
        )
    return names
