r"""Mean of two networks, each weighted by its own Kronecker metric, in closed form.

The minimum of :math:`\sum_i (w - w_i)' g_i (w - w_i)` solves
:math:`B_1 X A_1 + B_2 X A_2 = B_1 W_1 A_1 + B_2 W_2 A_2` in every layer. In bases in which
:math:`A_1, A_2` and :math:`B_1, B_2` are diagonal at once the solution is a division.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.factor import Factor

__all__ = ["kronecker_mean"]

_DAMPING = 1e-6  # share of the mean eigenvalue
_LEAST = 1e-6  # weight of the plain mean, in directions that neither function depends on


def kronecker_mean(
    first: Tensor,  # (n,)
    second: Tensor,  # (n,)
    metrics: tuple[KroneckerMetric, KroneckerMetric],
    weight: float = 1.0,
) -> Tensor:  # (n,)
    """Return the mean of two weight vectors in the metrics of their functions.

    Args:
        first: Weights of one network.
        second: Weights of another.
        metrics: Metric of each, with layers at the same places.
        weight: Weight of the first metric against the second.

    Returns:
        The mean; the plain one where no layer or diagonal of the metrics lies.
    """
    out = torch.lerp(second, first, weight / (1 + weight))
    layers = {layer.weight.start: layer for layer in metrics[1].layers}
    for one in metrics[0].layers:
        other = layers.get(one.weight.start)
        if other is None:
            continue
        w1, w2 = one.matrix(first).double(), one.matrix(second).double()
        a1, a2, b1, b2 = map(_dense, (one.inputs, other.inputs, one.outputs, other.outputs))
        (a, by_a), (b, by_b) = _common(a1, a2), _common(b1, b2)
        middle = torch.lerp(w2, w1, weight / (1 + weight))
        pull = weight * b1 @ (w1 - middle) @ a1 + b2 @ (w2 - middle) @ a2
        product = torch.outer(by_b, by_a), torch.outer(1 - by_b, 1 - by_a)
        total = weight * product[0] + product[1] + _LEAST
        one.write((middle + b @ ((b.T @ pull @ a) / total) @ a.T).to(out), out)
    names = [dict(zip(g.diagonal_only, g.diagonals, strict=False)) for g in metrics]
    for name in names[0].keys() & names[1].keys():
        (place, d1), (_, d2) = names[0][name], names[1][name]
        d1, d2 = weight * d1 + _LEAST * weight * _mean(d1, d2), d2 + _LEAST * _mean(d1, d2)
        total = d1 + d2
        share = torch.where(total > 0, d1 / total, weight / (1 + weight))
        out[place] = torch.lerp(second[place], first[place], share.to(out))
    return out


def _mean(one: Tensor, other: Tensor) -> float:
    return float(one.mean() + other.mean()) / 2


def _dense(factor: Factor) -> Tensor:  # (d, d), in float64
    return Factor(factor.vectors.double(), factor.values.double(), factor.tail).dense()


def _common(
    p: Tensor,  # (d, d)
    q: Tensor,  # (d, d)
) -> tuple[Tensor, Tensor]:  # (d, d), (d,)
    """Return T and x with T' (P + Q) T = I and T' P T = diag(x).

    P + Q is damped where it is singular.
    """
    total = p + q
    total.diagonal().add_(_DAMPING * total.diagonal().mean() + 1e-30)
    root = torch.linalg.cholesky(total)
    left = torch.linalg.solve_triangular(root, p, upper=False)
    inside = torch.linalg.solve_triangular(root, left.T, upper=False)
    # Eigenvalues are in [0, 1]: single precision suffices, in half the time.
    x, turned = (t.double() for t in torch.linalg.eigh(inside.float()))
    return torch.linalg.solve_triangular(root.T, turned, upper=True), x.clamp(0, 1)
