"""Networks themselves, their ensemble, and closed-form interpolations of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import CURVE, Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, Predictor, method
from geomerge.expert import Expert
from geomerge.networks.batches import Batch
from geomerge.training import straight_line

__all__ = ["mean_of_softmax", "slerp"]

_PARALLEL = 1e-4  # angle in radians below which interpolation is linear


@method("a", "networks", "the first network, the expert of its task")
def network_a(context: Context) -> MethodResult:
    """Return network a unchanged."""
    return MethodResult(context.a.weights)


@method("b", "networks", "the second network, the expert of its task")
def network_b(context: Context) -> MethodResult:
    """Return network b unchanged."""
    return MethodResult(context.b.weights)


def mean_of_softmax(*weights: Tensor) -> Predictor:
    """Return a predictor of the mean probabilities of several networks.

    Args:
        weights: Weights of each network, shape (n,).
    """

    def predict(expert: Expert, x: Batch) -> Tensor:
        parts = [expert.network.logits(w, x).softmax(dim=1) for w in weights]
        return torch.stack(parts).mean(dim=0)

    return predict


@method(
    "ensemble", "networks", "mean of both networks' probabilities: two networks, twice the cost"
)
def ensemble(context: Context) -> MethodResult:
    """Return a predictor of the mean probabilities of both networks."""
    if context.space.head == "separate":
        raise NotApplicableError(
            "with separate heads the task is known, and the network trained for it answers alone"
        )
    return MethodResult(mean_of_softmax(context.a.weights, context.b.weights))


@method("average", "weights", "mean of the weights")
def average(context: Context) -> MethodResult:
    """Return the mean of both networks."""
    return MethodResult(context.settled(context.space.middle()))


@method("straight-line", "weights", "best point of the straight line from a to b")
def line(context: Context) -> MethodResult:
    """Pick the best point of the line."""
    a, b = context.a.weights, context.b.weights
    t, w = context.pick_on_line(a, b)
    return MethodResult(w, chosen={"t": t}, curve=straight_line(a, b, CURVE))


def slerp(
    a: Tensor,
    b: Tensor,
    t: float,
) -> Tensor:
    """Interpolate two tensors of one shape spherically (Shoemake 1985).

    Interpolation is spherical in direction and linear in length:
    (sin((1 - t) omega) a + sin(t omega) b) / sin(omega), omega the angle between them. Parallel,
    opposite or zero tensors have no unique arc and are interpolated linearly.

    Args:
        a: Tensor at t = 0.
        b: Tensor at t = 1.
        t: Share of the angle, in [0, 1].
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
    """Pick the best point of the arcs; running statistics are interpolated linearly."""
    network, a, b = context.network, context.a.weights, context.b.weights

    def point(t: float) -> Tensor:
        w = torch.lerp(a, b, t)
        for place in network.slices.values():
            if place.stop <= network.n_parameters:
                w[place] = slerp(a[place], b[place], t)
        return context.settled(w)

    t, w = context.pick_share(point)
    return MethodResult(w, chosen={"t": t})
