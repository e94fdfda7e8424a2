"""Memory of all tasks within a limit: a running metric, fewer directions, fewer pseudo-inputs.

Sums of Kronecker metrics are taken factor by factor, as in a walk that keeps several functions, so
that one running metric steers the walk as the metrics of all tasks did. What each task then needs
is moments of its inputs and outputs on pseudo-inputs, and these shrink as tasks come: the number of
bytes is bounded for any number of tasks, and with it the time of a merge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from geomerge.continual.grown_heads import carry_metric, carry_weights
from geomerge.continual.memory import (
    NetworkOf,
    TaskMemory,
    answered,
    bytes_by_kind,
    in_precision,
)
from geomerge.errors import OptionError
from geomerge.metrics import KroneckerMetric, combine
from geomerge.metrics.sketch import truncated_metric
from geomerge.networks.batches import batch_size
from geomerge.networks.network import Network

__all__ = ["fit_memory", "least_bytes", "limit_bytes", "megabytes", "summed", "with_running_metric"]

_USUAL = 5_000_000
_NETWORKS = 4  # memory by default, in networks, where that is more
_METRIC = 0.3  # share of the limit that metrics may take before anything else shrinks
_SHRINK = 0.7  # factor of ranks and numbers per round
_OUTPUTS = 0.2  # share of the limit that outputs may take before moments shrink
_BASIS = 128  # directions of a task's common basis at first
_FEW_DIRECTIONS = 24  # directions of a common basis, before pseudo-inputs become few
_LEAST_DIRECTIONS = 4
_FEW_INPUTS = 1000  # pseudo-inputs of a task, before its basis becomes small
_LEAST_INPUTS = 200


def limit_bytes(memory_mb: float | None, network: int) -> int:
    """Return the largest number of bytes that a memory may take.

    Args:
        memory_mb: Limit in megabytes; None takes 5 MB, or four times the network if that is more.
        network: Bytes of the network.
    """
    return max(_USUAL, _NETWORKS * network) if memory_mb is None else int(memory_mb * 1e6)


def with_running_metric(memory: Sequence[TaskMemory], network_of: NetworkOf) -> list[TaskMemory]:
    """Return memories whose sketches have gone into one, that of the first task.

    Args:
        memory: Memories of all tasks, without origins.
        network_of: Function of a head that returns the network with its outputs.
    """
    fitted = list(memory)
    own = [i for i, task in enumerate(fitted) if task.sketch is not None]
    for later in own[1:]:
        first = fitted[own[0]]
        fitted[own[0]] = _joined(first, fitted[later], network_of(first.head), None)
        fitted[later] = _without_sketch(fitted[later])
    return fitted


def fit_memory(
    memory: Sequence[TaskMemory],
    limit: int,
    network_of: NetworkOf,
    w: Tensor,  # (n,)
) -> list[TaskMemory]:
    """Shrink memories until they fit.

    Metrics that take more than three tenths lose eigenvectors first, and outputs that take more
    than a fifth lose pseudo-inputs. Then the classes of each task share a basis of their moments,
    which loses directions, until there are few of those and of pseudo-inputs; at last the oldest
    sketches are joined.

    Args:
        memory: Memories of all tasks.
        limit: Largest number of bytes.
        network_of: Function of a head that returns the network with its outputs.
        w: Weights of the network; weights added since a task was remembered are theirs.

    Returns:
        The memories, with the shares of trace and variance that are left in ``kept``.

    Raises:
        OptionError: If even the smallest does not fit.
    """
    memory = [task.stored() for task in memory]
    fitted = list(memory)
    while (size := sum(task.nbytes for task in fitted)) > limit:
        smaller = _smaller(fitted, limit, network_of, w)
        if smaller is None:
            raise OptionError(
                f"the memory of {len(fitted)} task{'s' if len(fitted) > 1 else ''} needs "
                f"{megabytes(size)} at least ({_said(fitted)}), expected at most `memory_mb` "
                f"{limit / 1e6:g}; raise `memory_mb`, or lower `examples` or the widths of the "
                "network"
            )
        fitted = smaller
    for i, (task, before) in enumerate(zip(fitted, memory, strict=True)):
        if task.moments is not before.moments or len(task.targets) != len(before.targets):
            network = network_of(task.head)  # other pseudo-inputs need other targets
            known = len(before.origin) > 0
            then = carry_weights(before.origin, before.shapes, network, w) if known else w
            fitted[i] = answered(task, network, then)
    return fitted


def least_bytes(
    memory: Sequence[TaskMemory],
    network_of: NetworkOf,
    w: Tensor,  # (n,)
) -> dict[str, int]:
    """Return the bytes of each kind that memories have at least, however small the limit.

    Args:
        memory: Memories of all tasks.
        network_of: Function of a head that returns the network with its outputs.
        w: Weights of the network.
    """
    smaller: list[TaskMemory] | None = [task.stored() for task in memory]
    while smaller is not None:
        fitted, smaller = smaller, _smaller(smaller, 0, network_of, w)
    return bytes_by_kind(fitted)


def megabytes(size: int) -> str:
    """Return a number of bytes as megabytes, rounded up."""
    return f"{math.ceil(size / 100) / 1e4:g} MB"


def _said(memory: Sequence[TaskMemory]) -> str:
    return ", ".join(f"{kind} {megabytes(size)}" for kind, size in bytes_by_kind(memory).items())


def _smaller(
    memory: list[TaskMemory], limit: int, network_of: NetworkOf, w: Tensor
) -> list[TaskMemory] | None:
    """Return memories one step smaller; None if nothing can shrink."""
    by_kind = bytes_by_kind(memory)
    steps = [_fewer_directions, _fewer_pseudo_inputs, _least, _smaller_metrics]
    if by_kind.get("outputs", 0) > _OUTPUTS * limit:
        steps.insert(0, _fewer_pseudo_inputs)
    if by_kind.get("metric", 0) > _METRIC * limit:
        steps.insert(0, _smaller_metrics)
    for step in steps:
        smaller = step(memory)
        if sum(t.nbytes for t in smaller) < sum(t.nbytes for t in memory):
            return smaller
    own = [i for i, task in enumerate(memory) if task.sketch is not None]
    if len(own) < 2:
        return None
    first, second = own[:2]
    joined = list(memory)
    joined[first] = _joined(memory[first], memory[second], network_of(memory[first].head), w)
    joined[second] = _without_sketch(memory[second])
    return joined


def _smaller_metrics(memory: list[TaskMemory]) -> list[TaskMemory]:
    smaller = []
    for task in memory:
        if task.sketch is not None:
            numbers = int(_SHRINK * task.sketch.nbytes / 2)  # of two bytes
            sketch = truncated_metric(task.sketch, numbers)
            task = replace(task, sketch=sketch, kept=task.kept | {"sketch": _leading(sketch)})
        smaller.append(task)
    return smaller


def _fewer_directions(memory: list[TaskMemory], least: int = _FEW_DIRECTIONS) -> list[TaskMemory]:
    """Return memories with common bases, or else without the last directions of the largest."""
    own = [t.moments is not None and t.moments.basis is None for t in memory]
    ranks = [task.moments.rank for task in memory if task.moments is not None]
    rank = _BASIS if any(own) else max(least, int(_SHRINK * max(ranks, default=0)))
    return [
        _in_basis(task, rank)
        if task.moments is not None and (apart or task.moments.rank > rank)
        else task
        for task, apart in zip(memory, own, strict=True)
    ]


def _in_basis(task: TaskMemory, rank: int) -> TaskMemory:
    assert task.moments is not None
    moments = task.moments.in_common_basis(rank)
    if moments.nbytes >= task.moments.nbytes:  # of one or two classes
        moments = task.moments.in_common_basis(int(_SHRINK * task.moments.rank))
    return replace(task, moments=moments, kept=task.kept | {"moments": moments.kept})


def _fewer_pseudo_inputs(memory: list[TaskMemory], least: int = _FEW_INPUTS) -> list[TaskMemory]:
    counts = [len(task.targets) - batch_size(task.examples) for task in memory]
    most = max(least, int(_SHRINK * max(counts)))
    return [
        task if count <= most else replace(task, targets=task.targets[count - most :])
        for task, count in zip(memory, counts, strict=True)
    ]


def _least(memory: list[TaskMemory]) -> list[TaskMemory]:
    return _fewer_pseudo_inputs(_fewer_directions(memory, _LEAST_DIRECTIONS), _LEAST_INPUTS)


def _without_sketch(task: TaskMemory) -> TaskMemory:
    kept = {k: v for k, v in task.kept.items() if k != "sketch"}
    return replace(task, sketch=None, origin=task.origin.new_empty(0), kept=kept)


def _joined(
    first: TaskMemory,
    second: TaskMemory,
    network: Network,
    w: Tensor | None,  # (n,)
) -> TaskMemory:
    """Return the first memory with a sketch of both, and the second's origin if it has one."""
    assert first.metric is not None
    assert second.metric is not None
    one = carry_metric(first.metric, first.shapes, network)
    two = carry_metric(second.metric, second.shapes, network)
    sketch = in_precision(summed(one, two, (first.tasks, second.tasks)), torch.float16)
    origin = second.origin
    if w is not None and len(origin):
        origin = carry_weights(origin, second.shapes, network, w).cpu()
    return replace(
        first,
        shapes=dict(network.shapes),
        origin=origin,
        sketch=sketch,
        tasks=first.tasks + second.tasks,
        kept=first.kept | {"sketch": _leading(sketch)},
    )


def summed(
    first: KroneckerMetric, second: KroneckerMetric, tasks: tuple[int, int]
) -> KroneckerMetric:
    """Return the sum of the metrics of several tasks each, as large as the larger of both.

    Input factors are summed, and output factors are the mean over all tasks.

    Args:
        first: Metric of some tasks.
        second: Metric of others.
        tasks: Number of tasks of each.
    """
    metrics = _weighted([first, second], tasks)
    whole = max(metric.nbytes for metric in metrics) // 4  # numbers of four bytes
    total = combine(metrics)
    for layer in total.layers:  # eigenvectors will be in half precision
        layer.inputs.decomposed(torch.float32)
        layer.outputs.decomposed(torch.float32)
    return truncated_metric(total, whole)


def _weighted(metrics: list[KroneckerMetric], tasks: tuple[int, int]) -> list[KroneckerMetric]:
    """Return metrics whose sum has the mean of all tasks' output factors, not that of two."""
    both = set.intersection(*({layer.weight.start for layer in g.layers} for g in metrics))
    weighted = []
    for metric, count in zip(metrics, tasks, strict=True):
        share = len(tasks) * count / sum(tasks)
        layers = (
            replace(layer, outputs=layer.outputs.scaled(share))
            if layer.weight.start in both
            else layer
            for layer in metric.layers
        )
        weighted.append(replace(metric, layers=tuple(layers)))
    return weighted


def _leading(metric: KroneckerMetric) -> float:
    """Return the share of the trace of all layers in stored eigenvectors."""
    whole = sum(layer.trace for layer in metric.layers)
    inside = sum(layer.leading_trace for layer in metric.layers)
    return inside / whole if whole > 0 else 1.0
