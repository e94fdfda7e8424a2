"""Spherical linear interpolation (Shoemake 1985), tensor by tensor as merging tools do it."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.registry import MethodResult, method

__all__ = ["slerp"]

_PARALLEL = 1e-4  # angle in radians below which the arc is its chord


def slerp(
    a: Tensor,
    b: Tensor,
    t: float,
) -> Tensor:
    """Return the point at t of the great arc from a to b, of two tensors of one shape.

    The arc is that between their directions, and their lengths enter linearly:
    (sin((1 - t) omega) a + sin(t omega) b) / sin(omega), omega the angle between them. Tensors that
    are parallel, opposite or zero have no such arc; there it is the straight line.

    Args:
        a: Where t is 0.
        b: Where t is 1.
        t: Share of the angle.
    """
    if t in (0.0, 1.0):
        return b if t else a
    lengths = a.norm() * b.norm()
    cosine = ((a * b).sum() / lengths).clamp(-1, 1) if lengths > 0 else a.new_ones(())
    omega = torch.arccos(cosine)
    if torch.sin(omega) < _PARALLEL:
        return torch.lerp(a, b, t)
    return (torch.sin((1 - t) * omega) * a + torch.sin(t * omega) * b) / torch.sin(omega)


@method("slerp", "weights", "best point of the great arcs between the tensors of a and b")
def slerp_networks(context: Context) -> MethodResult:
    """Pick the best point of the arcs; running statistics go along the straight line."""
    network, a, b = context.network, context.a.w, context.b.w

    def point(t: float) -> Tensor:
        w = torch.lerp(a, b, t)
        for place in network.slices.values():
            if place.stop <= network.n_parameters:
                w[place] = slerp(a[place], b[place], t)
        return context.settled(w)

    t, w = context.pick_share(point)
    return MethodResult(w, chosen={"t": t})
