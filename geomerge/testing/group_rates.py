r"""Reference programs of group rates from the Jacobian itself, and greedy choices on them.

The cost of moving groups d_j with the best compensation on survivors S, Hassibi & Stork 1993 for
groups with all interactions: eliminated exactly, or restricted to given compensations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.steps.group_rates import RateProgram, check_progress

__all__ = ["galerkin_program", "greedy_order", "schur_program"]

_CHUNK = 1 << 22  # numbers brought to float64 at a time


def schur_program(
    changes: Tensor,  # (k, M)
    gram: Tensor,  # (M, M)
    damping: float,
    drift: Tensor | None = None,  # (M,)
) -> RateProgram:
    r"""Eliminate the best compensation exactly, on N inputs with M = N m outputs.

    With :math:`K = J_S J_S' / N` and :math:`R = \mu (K + \mu I)^{-1}` the push-through identity
    gives :math:`Q = 2 (JD)'R(JD) / N` and :math:`p = 2 \kappa (JD)'Rr / N`.

    Args:
        changes: J d_j / sqrt(N) as rows: what the groups change without compensation.
        gram: K of the survivors, positive semidefinite.
        damping: Damping mu, positive.
        drift: Drift kappa r / sqrt(N); None is none.

    Returns:
        The program, at a cost of O(M^3), independent of the number of weights.

    Raises:
        NumericalError: If gram + damping I is not positive definite, or something is not finite.
    """
    eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram.double() + damping * eye)
    if failed or not factor.isfinite().all():
        raise NumericalError(
            f"the Gram matrix of the survivors plus a damping of {damping:.1e} is not positive "
            "definite, expected a positive semidefinite one and a damping beyond its rounding "
            "errors; raise the damping"
        )
    pulls = torch.cat([changes, (changes.new_zeros(len(gram)) if drift is None else drift)[None]])
    white = torch.linalg.solve_triangular(factor, pulls.double().mT, upper=False).mT
    return _program(*_products(white[:-1], white[-1]), damping)


def galerkin_program(
    changes: Tensor,  # (k, M)
    drift: Tensor | None = None,  # (M,)
    *,
    compensations: Tensor | None = None,  # (k, n)
    correction: Tensor | None = None,  # (n,)
    damping: float = 0.0,
) -> RateProgram:
    r"""Restrict the program to the compensated moves :math:`d_j + x_j`, however good they are.

    .. math:: Q = 2 [\tilde D' g \tilde D + \mu X'X],\quad
              p = 2 [\tilde D' J'(J x_0 + \kappa r) / N + \mu X'x_0]

    Args:
        changes: J (d_j + x_j) / sqrt(N) as rows; M may be larger than memory holds in M^2.
        drift: Drift (J x_0 + kappa r) / sqrt(N); None is none.
        compensations: Compensations x_j as rows; None where the moves are not compensated.
        correction: Correction x_0, the compensation of the drift alone; None is none.
        damping: Damping mu, what a compensation costs by its length.

    Returns:
        The program: that of :func:`schur_program` where all compensations are exact.
    """
    quadratic, linear = _products(changes, drift)
    if compensations is not None:
        more = _products(compensations, correction)
        quadratic, linear = quadratic + damping * more[0], linear + damping * more[1]
    return _program(quadratic, linear)


def greedy_order(
    program: RateProgram,
    weights: Tensor,  # (k,)
    progress: float,
    already: Tensor | None = None,  # (k,)
) -> Tensor:  # (r,)
    """Choose groups until they make the progress, the cheapest per unit of it first.

    Args:
        program: The cost of the groups' moves.
        weights: Progress of each group's move, not negative; one of 0 is never chosen.
        progress: Total progress of all groups that move, earlier ones included.
        already: Mask of the groups that have moved, whose interactions with the others count.

    Returns:
        The numbers of the groups chosen, in the order in which they were: the first of them are
        the answer for any smaller progress.

    Raises:
        OptionError: If a weight is negative, or all groups together make less progress.
    """
    weights = weights.detach().cpu().double()
    check_progress(weights, progress)
    left = weights > 0
    slope = program.linear + program.hessian.diagonal() / 2  # what adding each alone costs
    missing = progress
    if already is not None:
        moved = already.cpu()
        left &= ~moved
        slope = slope + program.hessian[:, moved].sum(1)
        missing -= float(weights[moved].sum())

    order: list[int] = []
    # Sums of weights miss the progress by rounding: not worth another group.
    while missing > 1e-9 * progress and left.any():
        useful = weights.clamp(max=missing)  # what goes beyond the progress counts for nothing
        price = torch.where(left, slope / useful, torch.inf)
        j = int(price.argmin())
        order.append(j)
        left[j] = False
        slope = slope + program.hessian[:, j]
        missing -= float(weights[j])
    return torch.tensor(order, dtype=torch.long)


def _products(
    rows: Tensor,  # (k, n)
    vector: Tensor | None,  # (n,)
) -> tuple[Tensor, Tensor]:  # (k, k), (k,)
    """Return the inner products of rows with each other and with a vector, in float64."""
    k = len(rows)
    square = torch.zeros(k, k, dtype=torch.float64, device=rows.device)
    column = square.new_zeros(k)
    width = max(_CHUNK // max(k, 1), 1)
    for at in range(0, rows.shape[1], width):
        block = rows[:, at : at + width].double()
        square += block @ block.mT
        if vector is not None:
            column += block @ vector[at : at + width].double()
    return square, column


def _program(
    quadratic: Tensor,  # (k, k)
    linear: Tensor,  # (k,)
    factor: float = 1.0,
) -> RateProgram:
    return RateProgram(2 * factor * quadratic.cpu(), 2 * factor * linear.cpu())
