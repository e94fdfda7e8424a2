"""Limits on memory: passes of fewer inputs, and a metric whose measurement fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from geomerge.data.batchnorm import BATCH
from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.merging.measuring import inputs_of
from geomerge.merging.prepare import PreparedMerge
from geomerge.metrics import METRICS
from geomerge.metrics.registry import NetworkSize, cheaper_metrics
from geomerge.networks.batches import leaves
from geomerge.options import parse_size, replace_options
from geomerge.walks.walk import FunctionWalkOptions
from geomerge.weight_space import WeightSpace

__all__ = ["PROCESS", "data_bytes", "fit_memory", "network_size", "pass_bytes", "sketch_bytes"]

_NUMBER = 4  # bytes
_COPIES = 14  # copies of the weights at most: a walk, its state in writing, the path reopened
_ALIVE = 6  # activations as large as the largest, with what a convolution needs for a moment
PROCESS = 900_000_000  # Python, torch and the other libraries, with their buffers
_EVALUATED = 1000  # inputs normalised at a time
_PASS = 2 * 10**9  # bytes of a pass's activations without a limit


def fit_memory(prepared: PreparedMerge) -> PreparedMerge:
    """Choose the number of inputs in one pass, and the metric, so that a merge fits.

    The size of a pass changes results by rounding only. A note states the choice.

    Args:
        prepared: Merge with everything loaded that it will use.

    Returns:
        The merge with networks that pass as many inputs at a time, and a metric that fits.

    Raises:
        OptionError: If even passes of one input do not fit.
    """
    space, options = prepared.space, prepared.options
    walked = [expert for expert in space if expert.inputs is not None]
    if not walked:
        return prepared
    if options.machine.memory is None:
        return _in_usual_passes(prepared, walked)
    limit = parse_size(options.machine.memory)
    held = _held(space)
    sizes = [network_size(expert, _pass_bytes(expert)) for expert in walked]
    single = max(size.pass_bytes for size in sizes)
    normalised = max(_input_bytes(expert) for expert in walked) * 2 * _EVALUATED
    fixed = held + _COPIES * _NUMBER * space.network.n + normalised
    if space.bn == "re-estimate":  # its passes decide the statistics, so they stay as they are
        fixed += BATCH * max(_forward_bytes(expert) for expert in walked)
    order = cheaper_metrics(options.measure.metric)
    if options.walk.learn is not None:  # a damping needs something to damp
        order = [name for name in order if not METRICS[name].isotropic]
    needs = {name: METRICS[name].measuring_bytes(sizes) for name in order}
    whole = dict(needs)
    layerwise = [size._replace(layerwise=True) for size in sizes]
    for name in order:
        if fixed + needs[name] + single > limit:
            needs[name] = min(needs[name], METRICS[name].measuring_bytes(layerwise))
    least = min(needs[m] for m in order) + fixed + single
    metric = next((m for m in order if fixed + needs[m] + single <= limit), None)
    if metric is None:
        raise OptionError(
            f"`memory` {options.machine.memory} is too little: with networks and data loaded "
            f"{held / 1e9:.2f} GB are held, and this merge needs {least / 1e9:.2f} GB at "
            "least; give that"
        )
    room = limit - fixed - needs[metric]
    moments = None
    note = f"`memory` {options.machine.memory}: "
    if needs[metric] < whole[metric]:
        moments = (room - single) // 2  # beside those of the widest layer, which are in the needs
        room -= moments
    most = min(FunctionWalkOptions.batch, room // single)
    note += f"{most} inputs per pass, metric {metric}"
    if moments is not None:
        note += ", some layers after the others"
    note += f", {(limit - room + most * single) / 1e9:.2f} GB at most"
    if metric != options.measure.metric:
        wanted = fixed + needs[options.measure.metric] + single
        note += f" ({options.measure.metric} would need {wanted / 1e9:.2f} GB)"
    return replace(
        prepared,
        space=space.limited(most, moments),
        options=replace_options(options, metric=metric),
        notes=[*prepared.notes, note],
    )


def _in_usual_passes(prepared: PreparedMerge, walked: Sequence[Expert]) -> PreparedMerge:
    """Return a merge whose passes stay within two gigabytes, the limit by default."""
    single = pass_bytes(walked)
    if single * _EVALUATED <= _PASS:
        return prepared
    most = max(1, _PASS // single)
    if most >= FunctionWalkOptions.batch:
        return prepared
    note = f"large activations: passes of {most} inputs, {most * single / 1e9:.1f} GB each"
    return replace(prepared, space=prepared.space.limited(most), notes=[*prepared.notes, note])


def pass_bytes(experts: Iterable[Expert]) -> int:
    """Return the bytes of each further input in a pass, of the network with the most.

    Args:
        experts: Experts with inputs; those with inputs of one shape are alike.
    """
    shapes = {str(inputs_of(expert).shape): expert for expert in experts}
    return max((_pass_bytes(expert) for expert in shapes.values()), default=0)


def network_size(expert: Expert, pass_bytes: int = 0) -> NetworkSize:
    """Return the sizes on which the memory of an expert's metric depends.

    Args:
        expert: Expert with inputs.
        pass_bytes: Bytes that each further input adds to a pass forwards and backwards.
    """
    x = inputs_of(expert).batch(slice(0, 1))
    return NetworkSize(expert.network, expert.weights, x, pass_bytes)


def data_bytes(space: WeightSpace) -> int:
    """Return the bytes of all tasks' examples."""
    tasks = {id(expert.task): expert.task for expert in space if expert.task}.values()
    splits = [split for task in tasks for split in (task.train, task.select, task.test)]
    return sum(split.inputs.nbytes + split.labels.nbytes for split in splits)


def sketch_bytes(experts: Iterable[Expert]) -> int:
    """Return the bytes of the experts' sketches as they are stored."""
    sketches = [expert.sketch.tensors() for expert in experts if expert.sketch is not None]
    return sum(tensor.nbytes for sketch in sketches for tensor in sketch.values())


def _held(space: WeightSpace) -> int:
    """Return the bytes held before the walk, estimated from the loaded objects.

    Those of the process would differ when an interrupted merge is resumed, and so would passes.
    """
    loaded = data_bytes(space) + sketch_bytes(space)
    return PROCESS + 2 * loaded + 2 * _NUMBER * space.network.n * (len(space) + 1)


# Bytes of a module's passes, by the precision and the shape of an input.
_KNOWN: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()


def _pass_bytes(expert: Expert) -> int:
    """Return the bytes that each further input adds to a pass, which are measured once."""
    known = _KNOWN.setdefault(expert.network.module, {})
    key = f"{expert.network.precision} {inputs_of(expert).shape} {inputs_of(expert).dtype}"
    if key not in known:
        known[key] = _measured_bytes(expert)
    return known[key]


def _measured_bytes(expert: Expert) -> int:
    """Return the bytes that each further input adds to a pass forwards and backwards."""
    network = expert.network
    named = network.shared_module(expert.weights).named_parameters()
    parameters = {name: p.detach().requires_grad_(p.is_floating_point()) for name, p in named}

    def saved(count: int) -> int:
        total = 0

        def pack(tensor: Tensor) -> None:  # keeps nothing, since no backward pass follows
            nonlocal total
            total += tensor.nbytes

        x = inputs_of(expert).batch(slice(0, count))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            network.functional(parameters, x)
        return total

    # Activations and as much again: their gradients, and what layers need for a moment.
    return 2 * (saved(2) - saved(1)) + _input_bytes(expert)


def _forward_bytes(expert: Expert) -> int:
    """Return the bytes that each input adds to a pass without gradients, from its largest layer."""
    largest = 0

    def see(module: torch.nn.Module, given: Any, out: Any) -> None:
        nonlocal largest
        if isinstance(out, Tensor):
            largest = max(largest, out.nbytes)

    with ExitStack() as hooks:
        for module in expert.network.module.modules():
            hooks.enter_context(module.register_forward_hook(see))
        expert.network.logits(expert.weights, inputs_of(expert).batch(slice(0, 1)))
    return _ALIVE * largest


def _input_bytes(expert: Expert) -> int:
    return sum(leaf.nbytes for leaf in leaves(inputs_of(expert).batch(slice(0, 1))))
