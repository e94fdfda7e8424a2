r"""Energy and length of a path in the pullback metric, computed from outputs alone.

The energy of arXiv 2012.09605 eq. (5) needs no Jacobian. For points at times :math:`t_j` it is

.. math:: E = \sum_j |\phi(w(t_{j+1})) - \phi(w(t_j))|^2 / (t_{j+1} - t_j),

a mean over inputs. Since :math:`|\phi(w_1) - \phi(w_0)|^2 \le \mathrm{length}^2 \le E`, the ratio
of E to the lower bound limits the distance to the best path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.metrics import output_map
from geomerge.networks.batches import cast_floats
from geomerge.networks.network import Network

__all__ = ["REFINE", "Manifold", "PathMeasure", "fine", "measure_path"]

REFINE = 4  # subdivisions of each straight piece of a measured path

Manifold = tuple[Network, Inputs]  # a network, or one block of its outputs, with its inputs


@dataclass(frozen=True)
class PathMeasure:
    """Energy and length of one path on a fine grid, summed over inputs of all networks.

    Attributes:
        energy: Energy E with stored points at equal time steps.
        lengths: Length of each straight piece between stored points.
        bound: Lower bound |phi(w_1) - phi(w_0)|^2 for all paths between these ends.
    """

    energy: float
    lengths: tuple[float, ...]
    bound: float

    @property
    def length(self) -> float:
        """Length of the path; its square is at most the energy."""
        return sum(self.lengths)

    @property
    def gap(self) -> float | None:
        """Energy over its lower bound, at least 1; None if both ends have the same outputs."""
        return self.energy / self.bound if self.bound else None


def fine(
    points: Sequence[Tensor],  # T + 1 of (n,)
    refine: int,
) -> Iterator[Tensor]:  # T refine + 1 of (n,)
    """Yield the points of a path and ``refine`` - 1 interpolated points per straight piece."""
    for before, after in pairwise(points):
        yield before
        for k in range(1, refine):
            yield torch.lerp(before, after, k / refine)
    yield points[-1]


def measure_path(
    points: Sequence[Tensor],  # T + 1 of (n,)
    manifolds: Sequence[Manifold],
    output: str = "hellinger",
    refine: int = REFINE,
) -> PathMeasure:
    """Measure energy and length of a path on a grid finer than its points.

    The grid of the points alone would underestimate the energy of a relaxed path.

    Args:
        points: Points of the path, which is straight between them.
        manifolds: Networks with their inputs, preferably held out from the relaxation.
        output: Name of the output map, such as ``"hellinger"``.
        refine: Number of subdivisions of each straight piece.

    Returns:
        Sums over manifolds of means over inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.paths.energy import measure_path
        >>> task = gm.load_task("digits")
        >>> network = gm.Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> line = [torch.zeros(network.n), network.initial]
        >>> found = measure_path(line, [(network, task.test.inputs)], "logits")
        >>> abs(found.gap - 1) < 1e-6  # logits of a linear network change linearly: a geodesic
        True
    """
    pieces = len(points) - 1
    changes = torch.zeros(pieces, refine, dtype=torch.float64)
    bound = 0.0
    for network, inputs in manifolds:
        for _, x in inputs.parts(2000):
            x = cast_floats(x, points[0])
            ends: list[Tensor] = []  # outputs at the first point and at the latest one
            for k, w in enumerate(fine(points, refine)):
                phi = output_map(network.logits(w, x).double(), output)
                if ends:
                    changes.view(-1)[k - 1] += (phi - ends[-1]).square().sum().cpu() / len(inputs)
                ends = [*ends[:1], phi]
            bound += float((ends[-1] - ends[0]).square().sum()) / len(inputs)
    lengths = changes.sqrt().sum(dim=1).tolist()
    return PathMeasure(float(changes.sum()) * changes.numel(), tuple(lengths), bound)
