r"""Quadratic programs in batches, verified and differentiable.

.. math:: \min_z\ \tfrac12 z'Qz + p'z \quad \text{with } Gz \le h

This is the only door to qpth: inputs are checked and brought to units of order one, answers are
verified, and derivatives come from the verified solution and its active rows alone (as in dQP,
Magoon et al. 2024), so they are the same whoever found it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geomerge.errors import QPError
from geomerge.steps.qp.backends import solve_program
from geomerge.steps.qp.kkt import Program
from geomerge.steps.qp.scaling import Scaling, to_units

__all__ = ["QPSolution", "solve_qp"]


@dataclass(frozen=True)
class QPSolution:
    """Solutions of a batch of programs, on the CPU in float64.

    Attributes:
        z: Minima, shape (B, n), differentiable.
        multipliers: What one unit of each limit is worth in units of the objective, shape (B, m),
            differentiable; 0 for rows of zeros and rows without a limit.
        slack: By how much each soft row is broken, shape (B, m), differentiable; 0 for hard rows.
        certificate: By how much the optimality conditions fail, shape (B,), in units in which the
            program is of order one.
        solvers: Who found each solution: "qpth", "qpth alone" or "clarabel".
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
    """Minimise z' hessian z / 2 + linear' z with rows z <= limits, and verify the answer.

    Tensors without a batch dimension belong to every program. Gradients count a row that holds
    with equality at a multiplier of zero as absent.

    Args:
        hessian: Q, positive semidefinite; only its symmetric part counts.
        linear: p.
        rows: G; one that is zero bounds nothing.
        limits: h; infinity is no limit.
        soft: Mask of the rows that may be broken at a price.
        price: Objective per unit by which a soft row is broken. Rows that can be met are met
            where the price is over their multipliers.

    Returns:
        The solutions; B = 1 where no tensor has a batch dimension.

    Raises:
        QPError: If a tensor is not finite, hessian has a negative eigenvalue, or a program has no
            solution or none that satisfies the optimality conditions to 1e-7.

    Example:
        >>> import torch
        >>> from geomerge.steps import solve_qp
        >>> found = solve_qp(  # the nearest point to (1, 1) with x + y <= 1
        ...     torch.eye(2), torch.tensor([-1.0, -1.0]), torch.ones(1, 2), torch.ones(1)
        ... )
        >>> found.z.round(decimals=6), found.multipliers.round(decimals=6)
        (tensor([[0.5000, 0.5000]], dtype=torch.float64), tensor([[0.5000]], dtype=torch.float64))
        >>> bool(found.certificate < 1e-7)
        True
    """
    m = limits.shape[-1]
    program = _batched(hessian, linear, rows, limits)
    index = torch.arange(0) if soft is None else soft.cpu().nonzero()[:, 0]
    program = _elastic(program, index, price)
    with torch.no_grad():
        scaled, units = to_units(program, index)
        z, multipliers, certificate, solvers = solve_program(scaled, len(index))
    z, multipliers = _Differentiable.apply(
        program.hessian, program.linear, program.rows, program.limits, z, multipliers, scaled, units
    )
    n = z.shape[1] - len(index)
    slack = z.new_zeros(len(z), m).index_copy(1, index, z[:, n:])
    return QPSolution(z[:, :n], multipliers[:, :m], slack, certificate, solvers)


def _batched(
    hessian: Tensor,  # (B, n, n) or (n, n)
    linear: Tensor,  # (B, n) or (n,)
    rows: Tensor,  # (B, m, n) or (m, n)
    limits: Tensor,  # (B, m) or (m,)
) -> Program:
    """Give every tensor a batch dimension; autograd sums over those it did not have."""
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
    if limits.shape[-1] == 0:  # one row that says nothing stands in
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
    """Add to each soft row a variable t >= 0 by which it may be broken, at price t."""
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


class _Differentiable(torch.autograd.Function):
    """Turns a solution in scaled units into one that depends on the program."""

    @staticmethod
    def forward(
        ctx: Any,
        hessian: Tensor,  # (B, n, n)
        linear: Tensor,  # (B, n)
        rows: Tensor,  # (B, m, n)
        limits: Tensor,  # (B, m)
        z: Tensor,  # (B, n)
        multipliers: Tensor,  # (B, m)
        scaled: Program,
        units: Scaling,
    ) -> tuple[Tensor, Tensor]:  # (B, n), (B, m)
        ctx.active = scaled.active(z, multipliers)
        ctx.scaled, ctx.units = scaled, units
        z, multipliers = z * units.variables, multipliers * units.multipliers
        ctx.save_for_backward(z, multipliers)
        return z, multipliers

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        by_z: Tensor,  # (B, n)
        by_multipliers: Tensor,  # (B, m)
    ) -> tuple[Tensor | None, ...]:
        z, multipliers = ctx.saved_tensors
        units = ctx.units
        upper = -by_z * units.variables / units.objective
        lower = -by_multipliers * units.multipliers / units.objective
        x, y = ctx.scaled.solve(ctx.active, upper, lower)
        x, y = x * units.variables, y * units.multipliers
        half = z[:, :, None] * x[:, None, :] / 2
        by_rows = multipliers[:, :, None] * x[:, None, :] + y[:, :, None] * z[:, None, :]
        return half + half.mT, x, by_rows, -y, None, None, None, None
