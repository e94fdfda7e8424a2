r"""True geodesics of tiny networks, and the length and energy of any path.

The geodesic equation is arXiv 2012.09605, eq. (6). With
:math:`\Gamma_{k,ij} = \langle\partial_k\phi, \partial_i\partial_j\phi\rangle` it reads
:math:`g\,w'' = -\Gamma(w', w')`, for smooth networks whose metric is regular (more outputs times
inputs than weights).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares
from scipy.special import eval_legendre, roots_legendre
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.networks.network import Network
from geomerge.testing.dense import push, push_derivatives

__all__ = ["geodesic_between", "geodesic_from", "path_energy", "path_length"]

_EVALUATIONS = 5000  # evaluations of the geodesic equation; a smooth geodesic takes some hundreds
_NODES = 5  # Gauss points on each segment of a polygon


def geodesic_from(
    network: Network,
    start: Tensor,  # (n,)
    velocity: Tensor,  # (n,)
    x: Tensor,  # (B, ...)
    output: str = "logits",
    segments: int = 32,
) -> tuple[Tensor, Tensor]:  # (segments + 1, n) twice
    """Solve the geodesic equation from a point with a velocity, for a time of one.

    Returns:
        Points at equal times and the velocities there, in float64.

    Raises:
        NumericalError: If it comes where the metric is all but singular.
    """
    n = network.n
    left = _EVALUATIONS

    def motion(_: float, state: NDArray[np.float64]) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise NumericalError(
                "a geodesic bends too sharply to be followed, as where its metric is nearly "
                "singular; give a shorter velocity or more inputs"
            )
        w, u = torch.from_numpy(state).view(2, 1, n)
        by_w, j = (d.squeeze(0) for d in push_derivatives(network, w, u, x, output))
        u = u.squeeze(0)
        # Gamma(u, u) = J'(d J(w) u) and g = J'J: least squares, without their squared condition.
        bend = torch.linalg.lstsq(j, (by_w @ u)[:, None]).solution
        return torch.cat([u, -bend.squeeze(1)]).numpy()

    state = torch.cat([start, velocity]).double().numpy()
    times = np.linspace(0, 1, segments + 1)
    found = solve_ivp(motion, (0, 1), state, "DOP853", times, rtol=1e-9, atol=1e-11)
    points, velocities = torch.from_numpy(found.y.T.copy()).split(n, dim=1)
    return points, velocities


def geodesic_between(
    network: Network,
    start: Tensor,  # (n,)
    end: Tensor,  # (n,)
    x: Tensor,  # (B, ...)
    output: str = "logits",
    segments: int = 32,
    degree: int = 8,
) -> Tensor:  # (segments + 1, n)
    """Minimise the energy of polynomial paths between two points, from the straight line on.

    Returns:
        Points at equal times, in float64. The error falls geometrically with the degree.

    Raises:
        NumericalError: If the minimisation does not end.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.testing import geodesic_between, path_length
        >>> network = gm.Network(nn.Linear(2, 1).double())
        >>> start, end = torch.zeros(3).double(), torch.ones(3).double()
        >>> path = geodesic_between(network, start, end, torch.eye(2).double(), segments=4)
        >>> round(path_length(network, path, torch.eye(2).double()), 4)  # each output moves by 2
        2.0
    """
    nodes, weights = _gauss(2 * degree)
    bends, slopes = _bends(nodes, degree)
    weights = weights.sqrt()
    gap = (end - start).double()

    def moving(flat: NDArray[np.float64]) -> tuple[Tensor, Tensor]:  # (Q, n) twice
        a = torch.from_numpy(flat).view(-1, len(gap))
        return start + nodes[:, None] * gap + bends @ a, gap + slopes @ a

    def residual(flat: NDArray[np.float64]) -> Any:
        pushed = push(network, *moving(flat), x, output)
        return (weights[:, None] * pushed).reshape(-1).numpy()

    def jacobian(flat: NDArray[np.float64]) -> Any:
        by_w, by_u = push_derivatives(network, *moving(flat), x, output)
        by_a = torch.einsum("qk,qri->qrki", weights[:, None] * bends, by_w)
        by_a += torch.einsum("qk,qri->qrki", weights[:, None] * slopes, by_u)
        return by_a.flatten(2).flatten(0, 1).numpy()

    found = least_squares(
        residual, np.zeros(bends.shape[1] * len(gap)), jacobian, method="lm",
        ftol=1e-15, xtol=1e-12, gtol=1e-12, max_nfev=300,
    )  # fmt: skip
    if not found.success:
        raise NumericalError(f"a geodesic was not found ({found.message}); take nearer points")
    times = torch.linspace(0, 1, segments + 1, dtype=torch.float64)
    a = torch.from_numpy(found.x).view(-1, len(gap))
    return start + times[:, None] * gap + _bends(times, degree)[0] @ a


def path_length(
    network: Network,
    path: Tensor,  # (T + 1, n)
    x: Tensor,  # (B, ...)
    output: str = "logits",
) -> float:
    """Return the length of a polygon in the metric, which is integrated along every segment."""
    squares, weight = _along(network, path, x, output)
    return float((squares.sqrt() @ weight).sum())


def path_energy(
    network: Network,
    path: Tensor,  # (T + 1, n)
    x: Tensor,  # (B, ...)
    output: str = "logits",
) -> float:
    """Return the energy of a polygon walked with its points at equal times from 0 to 1.

    It is at least the square of the length, and equal to it at constant speed.
    """
    squares, weight = _along(network, path, x, output)
    return (len(path) - 1) * float((squares @ weight).sum())


def _along(
    network: Network,
    path: Tensor,  # (T + 1, n)
    x: Tensor,  # (B, ...)
    output: str,
) -> tuple[Tensor, Tensor]:  # (T, Q), (Q,)
    """Return |w'|_g^2 at the Gauss points of each segment, and their weights."""
    nodes, weights = _gauss(_NODES)
    gaps = path.diff(dim=0)
    points = path[:-1, None] + nodes[:, None] * gaps[:, None]  # (T, Q, n)
    velocities = gaps[:, None].expand_as(points)
    pushed = push(network, points.flatten(0, 1), velocities.flatten(0, 1), x, output)
    return pushed.square().sum(dim=1).view(len(gaps), _NODES), weights


def _gauss(count: int) -> tuple[Tensor, Tensor]:
    """Return the Gauss points of [0, 1] and their weights."""
    nodes, weights = roots_legendre(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def _bends(
    t: Tensor,  # (Q,)
    degree: int,
) -> tuple[Tensor, Tensor]:  # (Q, degree - 1) twice
    """Return polynomials that vanish at 0 and 1, and their orthonormal derivatives."""
    z = 2 * t.numpy() - 1
    p = torch.from_numpy(np.stack([eval_legendre(k, z) for k in range(degree + 1)], axis=1))
    scale = (2 * torch.arange(1, degree, dtype=torch.float64) + 1).sqrt()
    return (p[:, 2:] - p[:, :-2]) / (2 * scale), p[:, 1:-1] * scale
