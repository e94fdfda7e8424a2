"""How the outputs of several networks share one head: ``shared``, ``offset`` or ``separate``.

- ``shared``: class k of every task is output k. The answer does not say which task it is of.
- ``offset``: the classes of b come after those of a: one larger head, task unknown.
- ``separate``: a block of outputs each, and whoever asks knows the task.

These are the field's domain-, class- and task-incremental settings (van de Ven & Tolias 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError
from geomerge.io.checkpoint import Checkpoint
from geomerge.metrics.kronecker.factor import Factor, factorise
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.networks.network import Network

__all__ = ["HEADS", "Heads", "arrange_heads", "widen_metric"]

HEADS = ("shared", "offset", "separate")
# By how much the biases of the others' outputs are lowered in an offset head: the network must not
# answer with classes that it never saw. Their weights are those that the others learned; from zero
# a walk learned them far worse (MNIST, Fashion-MNIST by sketch: 77 / 81 against 57 / 89).
_LOWERED = 5.0


@dataclass(frozen=True)
class Heads:
    """Where each network's outputs lie.

    Attributes:
        protocol: One of :data:`HEADS`.
        layer: Name of the last linear layer, None in a shared head.
        columns: Of the outputs, by network: all of them, or its own block.
        offsets: What is added to each task's class numbers.
        rows: Which rows of the last layer are each network's own.
    """

    protocol: str
    layer: str | None
    columns: list[slice]
    offsets: list[int]
    rows: list[slice]


def arrange_heads(
    checkpoints: Sequence[Checkpoint], modules: Sequence[nn.Module], protocol: str
) -> tuple[list[Checkpoint], Heads]:
    """Give all networks one head with room for every task.

    Args:
        checkpoints: The networks.
        modules: The same, rebuilt; their last ``nn.Linear`` must be the head.
        protocol: One of :data:`HEADS`.

    Returns:
        The networks with widened heads (those that came in for a shared one), and where what is.

    Raises:
        CheckpointError: If a network has no linear layer to widen.
    """
    count = len(checkpoints)
    if protocol == "shared":
        everything = [slice(None)] * count
        return list(checkpoints), Heads(protocol, None, everything, [0] * count, everything)
    layer = _last_linear(modules[0], checkpoints[0].source)
    _check_bodies(checkpoints, layer)
    sizes = [len(c.weights[f"{layer}.weight"]) for c in checkpoints]
    starts = [0, *accumulate(sizes)]
    rows = [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    if protocol == "offset":
        heads = Heads(protocol, layer, [slice(None)] * count, starts[:-1], rows)
    else:
        heads = Heads(protocol, layer, rows, [0] * count, rows)
    widened = []
    for own, checkpoint in enumerate(checkpoints):
        weights = dict(checkpoint.weights)
        for kind in ("weight", "bias"):
            name = f"{layer}.{kind}"
            if name not in weights:
                continue
            lowered = _LOWERED if protocol == "offset" and kind == "bias" else 0.0
            parts = [
                c.weights[name] - (0.0 if i == own else lowered) for i, c in enumerate(checkpoints)
            ]
            weights[name] = torch.cat(parts)
        widened.append(replace(checkpoint, weights=weights))
    return widened, heads


def widen_metric(
    metric: KroneckerMetric, narrow: Network, wide: Network, heads: Heads, own: int
) -> KroneckerMetric:
    """Carry a metric over to a network whose head was widened.

    Outputs that the network never used count, in an offset head, as much as its own do on average:
    they must stay low on its inputs. In separate heads they are free.

    Args:
        metric: Measured on the network as it came.
        narrow: That network.
        wide: The network with the widened head.
        heads: How it was widened.
        own: Which network it is.
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
            outputs = _widen(outputs, total, heads.rows[own], unused)
        layers.append(
            KroneckerLayer(
                layer.name,
                _moved(layer.weight, narrow, wide),
                _moved(layer.bias, narrow, wide) if layer.bias is not None else None,
                layer.inputs,
                outputs,
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


def _check_bodies(checkpoints: Sequence[Checkpoint], layer: str) -> None:
    """Refuse networks that differ in more than the number of their outputs."""
    first = _body(checkpoints[0], layer)
    for other in checkpoints[1:]:
        two = _body(other, layer)
        for key in [*first, *two]:
            if first.get(key) != two.get(key):
                raise CheckpointError(
                    f"{checkpoints[0].source} and {other.source} are not of one architecture: "
                    f"{key!r} has shape {first.get(key, 'none')} and {two.get(key, 'none')}; "
                    "expected networks that differ in the number of outputs only"
                )


def _body(checkpoint: Checkpoint, layer: str) -> dict[str, tuple[int, ...]]:
    shapes = {k: tuple(v.shape) for k, v in checkpoint.weights.items()}
    return {k: s[1:] if k.rpartition(".")[0] == layer else s for k, s in shapes.items()}


def _last_linear(module: nn.Module, source: str) -> str:
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise CheckpointError(
            f"{source} has no linear layer whose outputs could be widened, expected one as its "
            "head; use `head` shared"
        )
    return str(names[-1])
