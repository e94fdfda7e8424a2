"""Scaling of quadratic programs to order one, for solvers with absolute tolerances.

qpth stops at an absolute residual, so that an objective multiplied by 1e3 already gives a wrong
solution. After scaling, the objective's diagonal, the rows and the solution are of order one. Rows
without effect are replaced by inactive ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import QPError
from geomerge.steps.qp.kkt import Program

__all__ = [
    "Scaling",
    "scale_program",
]

_INDEFINITE = 1e-9
_ZERO_DIAGONAL = 1e-14  # relative to the largest entry; less is rounding
_ZERO_ROW = 1e-30  # relative to the longest row; rows may have different units


@dataclass(frozen=True)
class Scaling:
    """Units of a scaled program's quantities, in those of the original program.

    Attributes:
        variables: Unit of each variable, shape (B, n).
        multipliers: Unit of each multiplier, shape (B, m); 0 for removed rows.
        objective: Unit of each objective, shape (B, 1).
    """

    variables: Tensor
    multipliers: Tensor
    objective: Tensor


def scale_program(
    program: Program,
    soft: Tensor,  # (k,)
) -> tuple[Program, Scaling]:
    """Scale programs and remove rows of zeros and rows without a limit.

    Args:
        program: Programs in any units; an infinite limit means no limit.
        soft: Indices of the rows with a slack. The last k variables are the slacks, and the last
            k rows bound them below by zero.

    Returns:
        Scaled programs, and their units.

    Raises:
        QPError: If Q has a negative eigenvalue, or a row of zeros a negative limit.
    """
    hessian, linear, rows, limits = program.hessian, program.linear, program.rows, program.limits
    k = len(soft)
    n, m = linear.shape[1] - k, limits.shape[1] - k
    q = hessian[:, :n, :n]
    diagonal = q.diagonal(dim1=1, dim2=2)
    top = diagonal.amax(1, keepdim=True)
    jacobi = torch.where(top > 0, diagonal.clamp(min=_ZERO_DIAGONAL * top), 1.0).rsqrt()
    _refuse_indefinite(jacobi[:, :, None] * q * jacobi[:, None, :])

    norms = (rows[:, :m, :n] * jacobi[:, None, :]).norm(dim=2)
    hard = torch.ones(m, dtype=torch.bool)
    hard[soft] = False
    zero = norms <= _ZERO_ROW * norms.amax(1, keepdim=True)
    _refuse_impossible(zero & hard, limits[:, :m])
    left_out = (zero & hard) | limits[:, :m].isposinf()
    norms = torch.where(zero, 1.0, norms)
    distances = torch.where(left_out, 0.0, limits[:, :m] / norms)

    pull = (jacobi * linear[:, :n]).abs().amax(1, keepdim=True)
    size = _size(pull, distances)
    slack_size = size * norms[:, soft]
    variables = torch.cat([jacobi * size, slack_size], dim=1)
    objective = size * torch.maximum(torch.where(top > 0, size, 0.0), pull)
    objective = torch.where(objective > 0, objective, 1.0)

    per_row = 1 / torch.cat([norms * size, slack_size], dim=1)
    left_out = torch.cat([left_out, torch.zeros_like(slack_size, dtype=torch.bool)], dim=1)
    per_row = torch.where(left_out, 0.0, per_row)
    scaled = Program(
        variables[:, :, None] * hessian * variables[:, None, :] / objective[:, :, None],
        variables * linear / objective,
        per_row[:, :, None] * rows * variables[:, None, :],
        torch.where(left_out, 1.0, per_row * limits),
    )
    return scaled, Scaling(variables, per_row * objective, objective)


def _size(
    pull: Tensor,  # (B, 1)
    distances: Tensor,  # (B, m)
) -> Tensor:  # (B, 1)
    """Estimate the norm of the solution from the unconstrained one and the rows' distances."""
    none = torch.zeros_like(pull)
    needed = torch.cat([none, -distances], dim=1).amax(1, keepdim=True)
    farthest = torch.cat([none, distances.abs()], dim=1).amax(1, keepdim=True)
    size = torch.maximum(needed, torch.minimum(pull, farthest))
    size = torch.where(size > 0, size, pull)
    return torch.where(size > 0, size, 1.0)


def _refuse_indefinite(
    scaled: Tensor,  # (B, n, n)
) -> None:
    values = torch.linalg.eigvalsh(scaled)
    lowest = (values[:, 0] / values.abs().amax(1).clamp(min=1e-300)).min()
    if lowest < -_INDEFINITE:
        raise QPError(
            f"the quadratic form of a program has an eigenvalue of {float(lowest):.1e} times its "
            "largest, expected none under zero; use a positive semidefinite matrix"
        )


def _refuse_impossible(
    zero: Tensor,  # (B, m)
    limits: Tensor,  # (B, m)
) -> None:
    impossible = zero & (limits < 0)
    if impossible.any():
        program, row = impossible.nonzero()[0].tolist()
        raise QPError(
            f"row {row} of program {program} is zero but its limit is "
            f"{float(limits[program, row]):.3g}, expected at least 0; no point satisfies it: leave "
            "it out or make it soft"
        )
