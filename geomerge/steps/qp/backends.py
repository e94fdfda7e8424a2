"""Two solvers of quadratic programs, neither of them believed: qpth in batches, clarabel alone.

qpth (Amos & Kolter 2017, OptNet) is asked first because it solves a whole batch at once. It has
no status: what did not converge, because it cycles or because another program of its batch made
it stop, comes back like a solution. So every answer is polished and must satisfy the optimality
conditions, or the program is solved again alone and then by clarabel (Goulart & Chen 2024).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from geomerge.errors import QPError
from geomerge.steps.qp.kkt import Program

__all__ = ["solve_program"]

_TOLERANCE = 1e-7
_CLOSE = 1e-6  # near enough for polishing to end at rounding error, as from 1e-9 in twice the time
_RIDGE = 1e-10
_SLACK_RIDGE = 1e-6  # qpth inverts Q, which is zero on slacks
_FAR = 1e7  # rows farther away than this confuse qpth

_REASONS = {
    "PrimalInfeasible": "its rows contradict each other; raise limits or make rows soft",
    "DualInfeasible": "its objective falls without end; bound the variables by rows",
}


def solve_program(
    program: Program,
    n_slacks: int,
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:  # (B, n), (B, m), (B,)
    """Solve a batch of scaled programs.

    Args:
        program: The programs, in units in which they are of order one.
        n_slacks: How many of the last variables are slacks, without a quadratic form.

    Returns:
        Solutions, multipliers, residuals of the optimality conditions, and who solved each.

    Raises:
        QPError: If a program has no solution or none that satisfies the conditions.
    """
    z, multipliers = program.polish(*_qpth(program, n_slacks))
    residual = program.residual(z, multipliers)
    names = ["qpth"] * len(z)
    for i in (residual > _TOLERANCE).nonzero()[:, 0].tolist():
        z[i], multipliers[i], residual[i], names[i] = _alone(program, i, n_slacks)
    return z, multipliers, residual, tuple(names)


def _alone(
    program: Program,
    i: int,
    n_slacks: int,
) -> tuple[Tensor, Tensor, Tensor, str]:  # (n,), (m,), ()
    one = program.element(i)
    if len(program.linear) > 1:
        z, multipliers = one.polish(*_qpth(one, n_slacks))
        residual = one.residual(z, multipliers)
        if residual <= _TOLERANCE:
            return z[0], multipliers[0], residual[0], "qpth alone"
    z, multipliers, status = _clarabel(one)
    z, multipliers = one.polish(z, multipliers)
    residual = one.residual(z, multipliers)
    if residual <= _TOLERANCE:
        return z[0], multipliers[0], residual[0], "clarabel"
    reason = _REASONS.get(status, "it is badly scaled; make hard rows soft or raise the damping")
    raise QPError(
        f"quadratic program {i} of {len(program.linear)} is solved only to {float(residual):.1e}, "
        f"expected {_TOLERANCE:.0e} (clarabel says {status}): {reason}"
    )


def _qpth(
    program: Program,
    n_slacks: int,
) -> tuple[Tensor, Tensor]:  # (B, n), (B, m)
    """Ask qpth; the answer may be anything, NaN included."""
    n = program.linear.shape[1]
    ridge = torch.full((n,), _RIDGE, dtype=torch.float64)
    ridge[n - n_slacks :] = _SLACK_RIDGE
    rows = program.rows.clone()
    empty = (rows == 0).all(2)
    rows[..., 0] += empty  # qpth divides by zero at a row of zeros: a far bound on z_1 instead
    limits = torch.where(empty, _FAR, program.limits.clamp(max=_FAR))
    none = torch.empty(0, dtype=torch.float64)
    hessian = program.hessian + torch.diag(ridge)
    try:
        with torch.enable_grad():  # the multipliers are kept for its backward pass only
            linear = program.linear.clone().requires_grad_()
            z = _qpth_layer()(hessian, linear, rows, limits, none, none)
        multipliers: Tensor = z.grad_fn.lams
    except RuntimeError:  # a singular factorisation
        return torch.full_like(linear, torch.nan), torch.zeros_like(limits)
    return z.detach(), torch.where(empty, 0.0, multipliers)


@cache
def _qpth_layer() -> Callable[..., Any]:
    with warnings.catch_warnings():  # its docstrings hold escapes that Python objects to
        warnings.simplefilter("ignore")
        from qpth.qp import QPFunction
    layer: Callable[..., Any] = QPFunction(eps=_CLOSE, verbose=-1, notImprovedLim=20, maxIter=60)
    return layer


def _clarabel(program: Program) -> tuple[Tensor, Tensor, str]:  # (1, n), (1, m)
    """Ask clarabel for a batch of one; it says how it ended."""
    import clarabel
    from scipy.sparse import csc_matrix

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    answer = clarabel.DefaultSolver(
        csc_matrix(program.hessian[0].triu().numpy()),
        program.linear[0].numpy(),
        csc_matrix(program.rows[0].numpy()),
        program.limits[0].numpy(),
        [clarabel.NonnegativeConeT(program.limits.shape[1])],
        settings,
    ).solve()
    z = torch.tensor(answer.x, dtype=torch.float64)
    multipliers = torch.tensor(answer.z, dtype=torch.float64)
    return z[None], multipliers[None], str(answer.status)
