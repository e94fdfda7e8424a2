r"""Relaxation of a path toward a geodesic: descent on its energy with fixed ends.

The energy's gradient takes one forward and one backward pass per point and no Jacobian. Tan et al.
2023 (arXiv 2308.12666) relax a chain of networks in a similar way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metrics import output_map
from geomerge.networks.batches import Batch, cast_floats
from geomerge.networks.network import Network
from geomerge.paths.energy import REFINE, Manifold, PathMeasure, measure_path

__all__ = ["Relaxation", "Relaxed", "relax_path"]

MODES = 8  # number of sine waves along the path; memory is proportional to it
SHARES = (1.0, 0.5, 0.25, 0.125)  # shares of the way to the relaxed path, tried in order
EDGE = 1e-3  # distance of random times from the ends of a piece, so that times are distinct


@dataclass(frozen=True)
class Relaxation:
    """Settings of a relaxation.

    Attributes:
        steps: Number of steps.
        learning_rate: Learning rate of the first step, as a share of the largest distance of the
            path from its start (root mean square per weight); it falls linearly to zero.
        batch: Number of inputs per step and network.
        refine: Number of subdivisions of each straight piece where a path is measured.
        seed: Seed of inputs and times.
    """

    steps: int = 300
    learning_rate: float = 0.02
    batch: int = 128
    refine: int = REFINE
    seed: int = 0


@dataclass(frozen=True)
class Relaxed:
    """Result of a relaxation.

    Attributes:
        points: Points of the path, with the original ends.
        before: Measure of the original path.
        after: Measure of the resulting path, whose energy is not larger.
        share: Interpolation between the original path (0) and the relaxed one (1); 0 if every path
            of lower energy has a worse guard value.
        worst_before: Guard value of the original path, None without a guard.
        worst_after: Guard value of the resulting path, which is not smaller.
    """

    points: list[Tensor]
    before: PathMeasure
    after: PathMeasure
    share: float
    worst_before: float | None
    worst_after: float | None


def relax_path(
    points: Sequence[Tensor],  # T + 1 of (n,)
    manifolds: Sequence[Manifold],
    held: Sequence[Manifold],
    output: str = "hellinger",
    settings: Relaxation = Relaxation(),
    *,
    worst: Callable[[list[Tensor]], float] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Relaxed:
    """Move the inner points of a path to reduce its energy; the result is never worse.

    The start is the path or the straight line between its ends, whichever has less energy. Buffers
    have no derivative and keep their values at the start.

    Args:
        points: Points of the path, which is straight between them; both ends are fixed. A path that
            must pass through a point is relaxed in two parts.
        manifolds: Networks and inputs on which the energy is minimised.
        held: The same networks with held-out inputs, on which the energy is measured.
        output: Name of the output map, such as ``"hellinger"``.
        settings: Settings of the relaxation.
        worst: Guard, a function of a path that returns the worst accuracy along it. If the relaxed
            path's is below the original one's, a path between the two is returned.
        on_step: Function called after each step with its number, the total number of steps and the
            energy on the batch.

    Returns:
        The path, with its energy, length and guard value before and after.

    Raises:
        NumericalError: If the energy is not finite.
    """
    points = list(points)
    before = measure_path(points, held, output, settings.refine)
    floor = None if worst is None else worst(points)
    line = [torch.lerp(points[0], points[-1], k / (len(points) - 1)) for k in range(len(points))]
    straighter = measure_path(line, held, output, settings.refine).energy < before.energy
    moved = _descend(line if straighter else points, manifolds, output, settings, on_step)
    for share in SHARES:
        inner = [torch.lerp(p, q, share) for p, q in zip(points, moved, strict=True)][1:-1]
        path = [points[0], *inner, points[-1]]
        after = measure_path(path, held, output, settings.refine)
        if after.energy > before.energy:
            continue
        found = None if worst is None else worst(path)
        if found is None or floor is None or found >= floor:
            return Relaxed(path, before, after, share, floor, found)
    return Relaxed(points, before, before, 0.0, floor, floor)


def _descend(
    points: list[Tensor],  # T + 1 of (n,)
    manifolds: Sequence[Manifold],
    output: str,
    settings: Relaxation,
    on_step: Callable[[int, int, float], None] | None,
) -> list[Tensor]:  # T + 1 of (n,)
    """Reduce the energy by Adam on the amplitudes of sine waves along the path.

    Independent noise at each point would be amplified T^2 times in the energy. The energy of a wave
    with k half periods is k^2 times that of the first; with amplitudes scaled by 1/k^2 the total
    noise is bounded for every T. Memory: 3 T + 4 MODES vectors, and the activations of two points.
    """
    pieces, size = len(points) - 1, manifolds[0][0].n_parameters
    modes = min(MODES, pieces - 1)
    if not modes:
        return points
    nodes = torch.stack(points)  # (T + 1, n)
    start = nodes[1:-1, :size].clone()
    k = torch.arange(1, modes + 1, device=nodes.device, dtype=nodes.dtype)
    at = torch.arange(1, pieces, device=nodes.device, dtype=nodes.dtype)[:, None]
    waves = math.sqrt(2) * torch.sin(math.pi / pieces * k * at) / k**2  # (T - 1, modes)
    amplitudes = nodes.new_zeros(modes, size, requires_grad=True)
    far = max(float((p - points[0])[:size].norm()) for p in points) / math.sqrt(size)
    optimizer = torch.optim.Adam([amplitudes])
    generator = torch.Generator().manual_seed(settings.seed)
    gradient = torch.zeros_like(nodes[:, :size])
    for step in range(settings.steps):
        # With fixed times the path would be optimised at these times only.
        u = torch.rand(pieces, generator=generator, dtype=torch.float64).clamp(EDGE, 1 - EDGE)
        times = ((torch.arange(pieces) + u) / pieces).tolist()
        gradient.zero_()
        energy = 0.0
        for network, inputs in manifolds:
            index = torch.randperm(len(inputs), generator=generator)[: settings.batch]
            x = cast_floats(inputs.batch(index), nodes)
            energy += _add_gradient(gradient, network, nodes, times, x, output)
        if not math.isfinite(energy):
            raise NumericalError(
                f"the path's energy is {energy} after {step} steps, expected a finite number; "
                "give a smaller learning rate"
            )
        optimizer.param_groups[0]["lr"] = settings.learning_rate * far * (1 - step / settings.steps)
        amplitudes.grad = waves.T @ gradient[1:-1]
        optimizer.step()
        nodes[1:-1, :size] = torch.addmm(start, waves, amplitudes.detach())
        if on_step is not None:
            on_step(step + 1, settings.steps, energy)
    return list(nodes.unbind())


class _Visit:
    """Outputs at one time of a path, with their derivatives with respect to its points."""

    def __init__(
        self,
        network: Network,
        nodes: Tensor,  # (T + 1, n)
        t: float,
        x: Batch,  # (B, ...)
        output: str,
    ) -> None:
        self.t = t
        self._before = min(int(t * (len(nodes) - 1)), len(nodes) - 2)
        self._share = t * (len(nodes) - 1) - self._before
        w = torch.lerp(nodes[self._before], nodes[self._before + 1], self._share)
        tensors = network.unravel(w)
        names = [k for k, s in network.slices.items() if s.stop <= network.n_parameters]
        self._held = network.held
        self._leaves = [tensors[k].requires_grad_(True) for k in names]
        self._phi = output_map(network.functional(tensors, x), output)
        self.phi = self._phi.detach()  # (B, m)

    def pull(
        self,
        gradient: Tensor,  # (T + 1, n_parameters), added to
        by_phi: Tensor,  # (B, m)
    ) -> None:
        """Propagate a gradient with respect to phi to the two neighbouring points."""
        parts = torch.autograd.grad(
            self._phi, self._leaves, by_phi, allow_unused=True, materialize_grads=True
        )
        by_w = torch.cat([part.reshape(-1) for part in parts])
        if self._held is not None:
            by_w[self._held[: len(by_w)]] = 0
        gradient[self._before].add_(by_w, alpha=1 - self._share)
        gradient[self._before + 1].add_(by_w, alpha=self._share)


def _add_gradient(
    gradient: Tensor,  # (T + 1, n_parameters), added to
    network: Network,
    nodes: Tensor,  # (T + 1, n)
    times: list[float],
    x: Batch,  # (B, ...)
    output: str,
) -> float:
    """Add the gradient of E on one batch with respect to the inner points; return E."""
    energy, arriving = 0.0, None
    here = _Visit(network, nodes, 0.0, x, output)
    for t in [*times, 1.0]:
        ahead = _Visit(network, nodes, t, x, output)
        leaving = (ahead.phi - here.phi) / (t - here.t)
        energy += float(leaving.square().sum()) * (t - here.t) / len(ahead.phi)
        if arriving is not None:
            here.pull(gradient, (arriving - leaving) * (2 / len(ahead.phi)))
        here, arriving = ahead, leaving
    return energy
