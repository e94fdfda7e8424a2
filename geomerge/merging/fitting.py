"""A limit on memory -> passes of fewer inputs, and a metric whose measurement fits."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from geomerge.data.batchnorm import BATCH
from geomerge.errors import OptionError
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side, Sides
from geomerge.metrics import METRICS
from geomerge.metrics.registry import NetworkSize, cheaper_metrics
from geomerge.networks.batches import leaves
from geomerge.options import parse_size
from geomerge.walks.walk import FunctionWalkOptions

__all__ = ["data_bytes", "fit_memory", "network_size", "sketch_bytes"]

_NUMBER = 4  # bytes
_COPIES = 14  # of the weights at most: a walk, its state while it is written, the path reopened
_ALIVE = 6  # activations as large as the largest, with what a convolution needs for a moment
_PROCESS = 900_000_000  # Python, torch and the other libraries, with their buffers
_EVALUATED = 1000  # inputs normalised at a time


def fit_memory(sides: Sides, options: MergeOptions) -> MergeOptions:
    """Choose how many inputs are passed at a time, and the metric, so that a merge fits.

    The size of a pass changes results by rounding only. What was chosen is added to the notes.

    Args:
        sides: The networks, with everything loaded that the merge will use.
        options: With the limit.

    Returns:
        The options, with a metric that fits.

    Raises:
        OptionError: If even passes of one input do not fit.
    """
    walked = [side for side in sides if side.manifold is not None]
    if options.memory is None or not walked:
        return options
    limit = parse_size(options.memory)
    held = _held(sides)
    sizes = [network_size(side, _pass_bytes(side)) for side in walked]
    one = max(size.pass_bytes for size in sizes)
    normalised = max(_input_bytes(side) for side in walked) * 2 * _EVALUATED
    fixed = held + _COPIES * _NUMBER * sides.network.n + normalised
    if sides.bn == "re-estimate":  # its passes decide the statistics, so they stay as they are
        fixed += BATCH * max(_forward_bytes(side) for side in walked)
    order = cheaper_metrics(options.metric)
    if options.learn is not None:  # a damping needs something to damp
        order = [name for name in order if not METRICS[name].isotropic]
    needs = {name: METRICS[name].measuring_bytes(sizes) for name in order}
    least = min(needs[m] for m in order) + fixed + one
    metric = next((m for m in order if fixed + needs[m] + one <= limit), None)
    if metric is None:
        raise OptionError(
            f"`memory` {options.memory} is too little: with networks and data loaded "
            f"{held / 1e9:.2f} GB are held, and this merge needs {least / 1e9:.2f} GB at "
            "least; give that"
        )
    most = min(FunctionWalkOptions.batch, (limit - fixed - needs[metric]) // one)
    for network in (sides.network, *(side.network for side in sides)):
        network.max_batch = most
    said = f"`memory` {options.memory}: {most} inputs per pass, metric {metric}"
    if metric != options.metric:
        said += (
            f" ({options.metric} would need {(fixed + needs[options.metric] + one) / 1e9:.2f} GB)"
        )
    sides.notes.append(said)
    return replace(options, metric=metric)


def network_size(side: Side, pass_bytes: int = 0) -> NetworkSize:
    """Return what the memory of a metric of a side depends on.

    Args:
        side: A network with inputs.
        pass_bytes: Bytes that each further input adds to a pass forwards and backwards.
    """
    assert side.manifold is not None
    return NetworkSize(side.network, side.w, side.manifold.batch(slice(0, 1)), pass_bytes)


def data_bytes(sides: Sides) -> int:
    """Return the bytes of all tasks' examples."""
    tasks = {id(side.task): side.task for side in sides if side.task}.values()
    splits = [split for task in tasks for split in (task.train, task.select, task.test)]
    return sum(split.inputs.nbytes + split.labels.nbytes for split in splits)


def sketch_bytes(sides: Iterable[Side]) -> int:
    """Return the bytes of sketches as they are stored."""
    sketches = [side.sketch.tensors() for side in sides if side.sketch is not None]
    return sum(tensor.nbytes for sketch in sketches for tensor in sketch.values())


def _held(sides: Sides) -> int:
    """Return what is there before the walk, by what was loaded and not by what the process has.

    The process would be another when an interrupted merge goes on, and so would the passes.
    """
    loaded = data_bytes(sides) + sketch_bytes(sides)
    return _PROCESS + 2 * loaded + 2 * _NUMBER * sides.network.n * (len(sides.all) + 1)


def _pass_bytes(side: Side) -> int:
    """Return what each further input adds to a pass forwards and backwards."""

    def saved(count: int) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        assert side.manifold is not None
        x = side.manifold.batch(slice(0, count))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            side.network.gradient(side.w, x, lambda logits: logits.square().sum())
        return total

    # Activations and as much again: their gradients, and what layers need for a moment.
    return 2 * (saved(4) - saved(2)) // 2 + _input_bytes(side)


def _forward_bytes(side: Side) -> int:
    """Return what each input adds to a pass without gradients: a few of the largest activations."""
    largest = 0

    def see(module: torch.nn.Module, given: Any, out: Any) -> None:
        nonlocal largest
        if isinstance(out, Tensor):
            largest = max(largest, out.nbytes)

    assert side.manifold is not None
    with ExitStack() as hooks:
        for module in side.network.module.modules():
            hooks.enter_context(module.register_forward_hook(see))
        side.network.logits(side.w, side.manifold.batch(slice(0, 1)))
    return _ALIVE * largest


def _input_bytes(side: Side) -> int:
    assert side.manifold is not None
    return sum(leaf.nbytes for leaf in leaves(side.manifold.batch(slice(0, 1))))
