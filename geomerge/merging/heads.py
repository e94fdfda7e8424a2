"""Heads with outputs for several tasks, by protocol: ``shared``, ``offset`` or ``separate``.

- ``shared``: class k of every task is output k. The answer does not say which task it is of.
- ``offset``: the classes of b come after those of a: one larger head, task unknown.
- ``separate``: a block of outputs each, and the task of every input is known.

These are the field's domain-, class- and task-incremental settings (van de Ven & Tolias 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError
from geomerge.expert import Expert
from geomerge.metrics.kronecker.factor import Factor, factorise
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.networks.architectures.rebuild import resize_layers
from geomerge.networks.network import Network

__all__ = ["HEADS", "Heads", "arrange_heads", "widen_metric"]

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
        columns: Outputs that an expert's task sees: all of them, or its own block.
        offsets: Output of the first class of an expert's task.
        rows: Rows of the last layer that are an expert's own.
    """

    protocol: str
    layer: str | None
    columns: dict[str, slice]
    offsets: dict[str, int]
    rows: dict[str, slice]


def arrange_heads(experts: Sequence[Expert], protocol: str) -> tuple[Network, Heads, list[Tensor]]:
    """Return a network with one head that has room for every task, and all weights of it.

    Args:
        experts: Experts; in an offset or separate head their last ``nn.Linear`` must be the head.
        protocol: One of :data:`HEADS`.

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
    layer = _last_linear(first.network.module, first.source)
    tensors = [expert.network.unravel(expert.weights) for expert in experts]
    sizes = [len(own[f"{layer}.weight"]) for own in tensors]
    starts = [0, *accumulate(sizes)]
    rows = [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    if protocol == "offset":
        seen, offsets = [slice(None)] * len(experts), starts[:-1]
    else:
        own_columns = [expert.network.columns for expert in experts]
        seen = [_within(*pair) for pair in zip(rows, own_columns, strict=True)]
        offsets = [0] * len(experts)
    wide = [_widened(tensors, layer, own, protocol) for own in range(len(experts))]
    module = first.network.module_at(first.weights)
    resize_layers(module, wide[0])
    module.load_state_dict(wide[0], strict=False)
    network = first.network.head_view(slice(None)).alike(module)
    heads = Heads(
        protocol,
        layer,
        dict(zip(names, seen, strict=True)),
        dict(zip(names, offsets, strict=True)),
        dict(zip(names, rows, strict=True)),
    )
    return network, heads, [network.ravel(weights) for weights in wide]


def _within(rows: slice, columns: slice) -> slice:
    """Return the place of some of a network's outputs among all, from those of the network."""
    start, stop, _ = columns.indices(rows.stop - rows.start)
    return slice(rows.start + start, rows.start + stop)


def _widened(
    tensors: Sequence[Mapping[str, Tensor]], layer: str, own: int, protocol: str
) -> dict[str, Tensor]:
    """Return a network's tensors with the rows of all heads, those of the others lowered."""
    weights = dict(tensors[own])
    for kind in ("weight", "bias"):
        name = f"{layer}.{kind}"
        if name not in weights:
            continue
        lowered = _LOWERED if protocol == "offset" and kind == "bias" else 0.0
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
        metric: Metric of an expert's network as it came.
        narrow: Network as it came.
        wide: Network with the common head.
        heads: Places of the outputs in the common head.
        name: Name of the expert.
    """
    if heads.layer is None:
        return metric
    head = narrow.slices[f"{heads.layer}.weight"].start
    layers = []
    for layer in metric.layers:
        outputs = layer.outputs
        if layer.weight.start == head:
            unused = outputs.trace / len(outputs.vectors) if heads.protocol == "offset" else 0.0
            total = wide.shapes[f"{heads.layer}.weight"][0]
            outputs = _widen(outputs, total, heads.rows[name], unused)
        layers.append(
            replace(
                layer,
                weight=_moved(layer.weight, narrow, wide),
                bias=_moved(layer.bias, narrow, wide) if layer.bias is not None else None,
                outputs=outputs,
                leading_blocks=None,
            )
        )
    rest = tuple(wide.slices[name] for name in metric.diagonal_only)
    return KroneckerMetric(wide.n, tuple(layers), rest, metric.diagonal, metric.diagonal_only)


def _moved(place: slice, narrow: Network, wide: Network) -> slice:
    """Return where weights lie in the wide network: a whole tensor, or rows inside of one."""
    name, owner = next(
        (k, s) for k, s in narrow.slices.items() if s.start <= place.start and place.stop <= s.stop
    )
    start = wide.slices[name].start
    if (place.start, place.stop) == (owner.start, owner.stop):
        return wide.slices[name]
    return slice(start + place.start - owner.start, start + place.stop - owner.start)


def _widen(factor: Factor, total: int, rows: slice, unused: float) -> Factor:
    own = factor.dense().double()
    matrix: Tensor = unused * torch.eye(total, dtype=own.dtype, device=own.device)
    matrix[rows, rows] = own
    return factorise(matrix).to(factor.vectors.dtype, factor.vectors.device)


def _last_linear(module: nn.Module, source: str) -> str:
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise CheckpointError(
            f"{source} has no linear layer whose outputs could be widened, expected one as its "
            "head; use `head` shared"
        )
    return str(names[-1])
