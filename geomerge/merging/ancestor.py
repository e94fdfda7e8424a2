"""Common ancestor of fine-tunes: its weights as a point of their weight space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from geomerge.errors import CheckpointError
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.merging.heads import Heads
from geomerge.weight_space import WeightSpace

__all__ = ["ancestor_point", "named_like"]

_SHOWN = 3


def named_like(base: Expert, experts: Sequence[Expert]) -> Expert:
    """Return a base whose tensors have the names of its fine-tunes'.

    A bare model of transformers (``BertModel``) lacks the prefix under which fine-tunes hold it.

    Args:
        base: Common ancestor.
        experts: Its fine-tunes.

    Raises:
        CheckpointError: If it has no tensor of theirs, or one of another shape outside of the head.
    """
    shapes = experts[0].network.shapes
    prefix = getattr(base.network.module, "base_model_prefix", "")
    if prefix and not base.network.shapes.keys() & shapes.keys():
        tensors = base.network.unravel(base.weights)
        base = _renamed(base, {f"{prefix}.{name}": value for name, value in tensors.items()})
    common = base.network.shapes.keys() & shapes.keys()
    last = experts[0].network.last_layer  # a head may have other outputs
    trunk = [name for name in shapes if name in common and name.rpartition(".")[0] != last]
    apart = [name for name in trunk if base.network.shapes[name] != shapes[name]]
    if not common or apart:
        name = apart[0] if apart else next(iter(shapes))
        got = f"of shape {tuple(base.network.shapes[name])}" if apart else "missing"
        raise CheckpointError(
            f"{base.source} is no ancestor of {experts[0].source}: {name!r} is {got}, "
            f"expected shape {tuple(shapes[name])}; give the network that all were fine-tuned from"
        )
    return base


def ancestor_point(
    base: Expert, space: WeightSpace, heads: Heads
) -> tuple[Tensor, list[str]]:  # (n,)
    """Return a common ancestor as a point of its fine-tunes' weight space.

    Args:
        base: Common ancestor, its tensors named as theirs.
        space: Weight space of the fine-tunes.
        heads: Places of their heads.

    Returns:
        The point, which is the mean of the fine-tunes where the ancestor has no such weights, and
        sentences about these weights outside of the heads.
    """
    w = space.middle()
    tensors = base.network.unravel(base.weights)
    missing = []
    for name, shape in space.network.shapes.items():
        found = tensors.get(name)
        if found is not None and found.shape == shape:
            w[space.network.slices[name]] = found.reshape(-1).to(w)
            paged.release(w[space.network.slices[name]], found)
        elif name.rpartition(".")[0] not in heads.layers:
            missing.append(name)
    if not missing:
        return w, []
    listed = ", ".join(missing[:_SHOWN]) + (" and others" if len(missing) > _SHOWN else "")
    return w, [f"the base has no {listed}: the mean of the networks stands for it"]


def _renamed(base: Expert, tensors: Mapping[str, Tensor]) -> Expert:
    """Return an expert whose network calls its tensors otherwise; it can only be read."""
    network = base.network.head_view(base.network.columns)
    network.shapes = {name: value.shape for name, value in tensors.items()}
    slices = list(base.network.slices.values())
    network.slices = dict(zip(tensors, slices, strict=True))
    return replace(base, network=network)
