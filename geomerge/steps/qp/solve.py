r"""Quadratic programs in batches, verified and differentiable.

.. math:: \min_z\ \tfrac12 z'Qz + p'z \quad \text{with } Gz \le h

Inputs are checked and scaled to order one, and solutions are verified. Derivatives depend on the
verified solution and its active rows only (as in dQP, Magoon et al. 2024), so that they are the
same for all solvers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geomerge.errors import QPError
from geomerge.steps.qp.backends import solve_program
from geomerge.steps.qp.kkt import Program
from geomerge.steps.qp.scaling import Scaling, scale_program

__all__ = ["QPSolution", "solve_qp"]


@dataclass(frozen=True)
class QPSolution:
    """Solutions of a batch of programs, on the CPU in float64.

    Attributes:
        z: Minima, shape (B, n), differentiable.
        multipliers: Decrease of the objective per unit of each limit, shape (B, m),
            differentiable; 0 for rows of zeros and rows without a limit.
        slack: Violation of each soft row, shape (B, m), differentiable; 0 for hard rows.
        certificate: Residual of the optimality conditions, shape (B,), for programs of order one.
        solvers: Name of the solver of each program: "qpth", "qpth alone" or "clarabel".
    """

    z: Tensor
    multipliers: Tensor
    slack: Tensor
    certificate: Tensor
    solvers: tuple[str, ...]


def solve_qp(
    hessian: Tensor,  # (B, n, n) or (n, n)
    linear: Tensor,  # (B, n) or (n,)
    rows: Tensor,  # (B, m, n) or (m, n)
    limits: Tensor,  # (B, m) or (m,)
    *,
    soft: Tensor | None = None,  # (m,)
    price: float = 1e3,
) -> QPSolution:
    """Minimise z' hessian z / 2 + linear' z with rows z <= limits, and verify the solution.

    Tensors without a batch dimension are shared by all programs. In gradients, active rows with a
    multiplier of zero are ignored.

    Args:
        hessian: Matrix Q, positive semidefinite; only its symmetric part is used.
        linear: Vector p.
        rows: Matrix G; rows of zeros are ignored.
        limits: Limits h; infinity means no limit.
        soft: Mask of the rows that may be violated at a price.
        price: Objective per unit of violation of a soft row. Feasible rows are satisfied if the
            price exceeds their multipliers.

    Returns:
        Solutions; B = 1 if no tensor has a batch dimension.

    Raises:
        QPError: If a tensor is not finite, hessian has a negative eigenvalue, or a program has no
            solution or none that satisfies the optimality conditions to 1e-7.

    Example:
        >>> import torch
        >>> from geomerge.steps import solve_qp
        >>> solution = solve_qp(  # the nearest point to (1, 1) with x + y <= 1
        ...     torch.eye(2), torch.tensor([-1.0, -1.0]), torch.ones(1, 2), torch.ones(1)
        ... )
        >>> solution.z.round(decimals=6), solution.multipliers.round(decimals=6)
        (tensor([[0.5000, 0.5000]], dtype=torch.float64), tensor([[0.5000]], dtype=torch.float64))
        >>> bool(solution.certificate < 1e-7)
        True
    """
    m = limits.shape[-1]
    program = _batched(hessian, linear, rows, limits)
    index = torch.arange(0) if soft is None else soft.cpu().nonzero()[:, 0]
    program = _elastic(program, index, price)
    with torch.no_grad():
        scaled, units = scale_program(program, index)
        z, multipliers, certificate, solvers = solve_program(scaled, len(index))
    z, multipliers = _Differentiable.apply(
        program.hessian, program.linear, program.rows, program.limits,
        _Solved(scaled, units, z, multipliers),
    )  # fmt: skip
    n = z.shape[1] - len(index)
    slack = z.new_zeros(len(z), m).index_copy(1, index, z[:, n:])
    return QPSolution(z[:, :n], multipliers[:, :m], slack, certificate, solvers)


def _batched(
    hessian: Tensor,  # (B, n, n) or (n, n)
    linear: Tensor,  # (B, n) or (n,)
    rows: Tensor,  # (B, m, n) or (m, n)
    limits: Tensor,  # (B, m) or (m,)
) -> Program:
    """Add missing batch dimensions; gradients are summed over the added ones."""
    hessian, linear, rows, limits = (t.cpu().double() for t in (hessian, linear, rows, limits))
    for name, tensor in (
        ("hessian", hessian),
        ("linear", linear),
        ("rows", rows),
        ("limits", limits.masked_fill(limits.isposinf(), 0)),
    ):
        if not tensor.isfinite().all():
            raise QPError(
                f"the {name} of a quadratic program hold NaN or infinity, expected finite numbers; "
                "look for the first step after which the weights are not finite"
            )
    n = linear.shape[-1]
    if limits.shape[-1] == 0:  # replaced by one row without a limit
        rows, limits = rows.new_zeros(1, n), limits.new_full((1,), torch.inf)
    batch = torch.broadcast_shapes(
        (1,), hessian.shape[:-2], linear.shape[:-1], rows.shape[:-2], limits.shape[:-1]
    )
    return Program(
        ((hessian + hessian.mT) / 2).expand(*batch, -1, -1),
        linear.expand(*batch, -1),
        rows.expand(*batch, -1, -1),
        limits.expand(*batch, -1),
    )


def _elastic(
    program: Program,
    soft: Tensor,  # (k,)
    price: float,
) -> Program:
    """Add a slack t >= 0 to each soft row, at a price per unit."""
    k = len(soft)
    if k == 0:
        return program
    batch, m, n = program.rows.shape
    one = torch.eye(k, dtype=torch.float64).expand(batch, k, k)
    zero = one.new_zeros(batch, k, n)
    relief = one.new_zeros(batch, m, k).index_copy(1, soft, one)
    return Program(
        _blocks(program.hessian, zero.mT, zero, torch.zeros_like(one)),
        torch.cat([program.linear, one.new_full((batch, k), price)], dim=1),
        _blocks(program.rows, -relief, zero, -one),
        torch.cat([program.limits, one.new_zeros(batch, k)], dim=1),
    )


def _blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1)


class _Solved(NamedTuple):
    """Scaled programs with their solutions."""

    program: Program
    units: Scaling
    z: Tensor  # (B, n)
    multipliers: Tensor  # (B, m)


class _Differentiable(torch.autograd.Function):
    """Solution as a differentiable function of the program."""

    @staticmethod
    def forward(
        ctx: Any,
        hessian: Tensor,  # (B, n, n)
        linear: Tensor,  # (B, n)
        rows: Tensor,  # (B, m, n)
        limits: Tensor,  # (B, m)
        solved: _Solved,
    ) -> tuple[Tensor, Tensor]:  # (B, n), (B, m)
        ctx.active = solved.program.active(solved.z, solved.multipliers)
        ctx.scaled, ctx.units = solved.program, solved.units
        z = solved.z * solved.units.variables
        multipliers = solved.multipliers * solved.units.multipliers
        ctx.save_for_backward(z, multipliers)
        return z, multipliers

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        d_z: Tensor,  # (B, n)
        d_multipliers: Tensor,  # (B, m)
    ) -> tuple[Tensor | None, ...]:
        z, multipliers = ctx.saved_tensors
        units = ctx.units
        upper = -d_z * units.variables / units.objective
        lower = -d_multipliers * units.multipliers / units.objective
        x, y = ctx.scaled.solve(ctx.active, upper, lower)
        x, y = x * units.variables, y * units.multipliers
        half = z[:, :, None] * x[:, None, :] / 2
        d_rows = multipliers[:, :, None] * x[:, None, :] + y[:, :, None] * z[:, None, :]
        return half + half.mT, x, d_rows, -y, None
