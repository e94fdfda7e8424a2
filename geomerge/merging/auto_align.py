"""Automatic alignment: networks are aligned where that brings the mean near to all functions."""

from __future__ import annotations

from dataclasses import replace

from geomerge.alignment import METHODS, ROTATIONS
from geomerge.errors import OptionError
from geomerge.merging.aligning import rotation_problem
from geomerge.merging.prepare import PreparedMerge, aligned_merge
from geomerge.networks.batches import leaves
from geomerge.options import replace_options

__all__ = ["align_where_it_helps"]

# Larger networks, or inputs, are aligned by name only: trying it would take minutes.
WEIGHTS = 20_000_000
NUMBERS = 16_384  # numbers in one input: 3 x 64 x 64 and somewhat more
SHARE = 0.8  # share of the functional change at the mean below which alignment is taken


def align_where_it_helps(prepared: PreparedMerge) -> PreparedMerge:
    """Align convolutional networks for a walk that starts from their mean, if that is nearer.

    Fine-tunes of one base are in one order already, and buffers of a task alone may belong to an
    order. The criterion is the largest functional change from an expert to the mean of all,
    measured on inputs without labels.

    Args:
        prepared: Merge of experts that are not aligned.

    Returns:
        The merge, aligned or not; a note states the choice and its reason.
    """
    fixed = prepared.base is not None or bool(prepared.space.network.constants)
    # Walks between stacks of Linear layers end at the same accuracies with and without alignment.
    if fixed or not prepared.space.network.convolves:
        return prepared
    numbers = [
        sum(leaf[0].numel() for leaf in leaves(expert.inputs.batch(slice(0, 1))))
        for expert in prepared.space
        if expert.inputs is not None
    ]
    if not numbers:
        return _noted(prepared, "`align` none was chosen: no inputs to test whether it helps")
    if prepared.space.network.n > WEIGHTS or max(numbers) > NUMBERS:
        return _noted(
            prepared,
            "`align` none was chosen: networks or inputs are too large to try the methods; units "
            "of networks that were initialised independently are matched by `align` weights",
        )
    tried: dict[str, PreparedMerge] = {"none": prepared}
    rotates = rotation_problem(prepared.space, prepared.options) is None
    methods = (*METHODS, ROTATIONS) if rotates else METHODS
    for name in methods:
        named = replace(prepared, options=replace_options(prepared.options, align=name))
        try:
            tried[name] = aligned_merge(named)
        except OptionError as error:
            return _noted(prepared, f"`align` none was chosen: {error}")
    changes = {name: _change(one) for name, one in tried.items()}
    best = min(methods, key=lambda name: changes[name])
    if changes[best] >= SHARE * changes["none"]:
        best = "none"
    listed = ", ".join(f"{name} {change:.3g}" for name, change in changes.items())
    why = f"functional change at the mean of the networks by method: {listed}"
    return _noted(tried[best], f"`align` {best} was chosen ({why})")


def _change(prepared: PreparedMerge) -> float:
    """Return the largest functional change from an expert to the mean of all."""
    mean = prepared.space.settle(prepared.space.middle())
    probes = [(expert, prepared.probe(expert)) for expert in prepared.space]
    return max(probe(expert.weights, mean) for expert, probe in probes if probe is not None)


def _noted(prepared: PreparedMerge, note: str) -> PreparedMerge:
    return replace(prepared, notes=[*prepared.notes, note])
