"""Solvers of quadratic programs, qpth and clarabel, with verified KKT conditions.

qpth (Amos & Kolter 2017, OptNet) is tried first because it solves a batch at once. It returns no
status: a program may have failed to converge, because of cycling or because the iterations of its
batch ended early. Every result is therefore polished and verified. A program that violates the
optimality conditions is solved again alone with qpth, and then with clarabel (Goulart & Chen 2024).

Where qpth cannot be imported (it requires NumPy below 2, which does not support Python 3.13),
clarabel solves all programs, one after the other. Derivatives are computed from the verified
solution (:mod:`geomerge.steps.qp.solve`) and do not depend on the solver.
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

__all__ = ["qp_solver", "solve_program"]

_TOLERANCE = 1e-7
_CLOSE = 1e-6  # polishing reaches rounding error from here; 1e-9 takes twice the time
_RIDGE = 1e-10
_SLACK_RIDGE = 1e-6  # qpth inverts Q, which is zero for slacks
_FAR = 1e7  # largest limit for which qpth converges

_REASONS = {
    "PrimalInfeasible": "its rows contradict each other; raise limits or make rows soft",
    "DualInfeasible": "its objective falls without end; bound the variables by rows",
}


@cache
def qp_solver() -> str:
    """Return the name of the preferred solver: ``"qpth"`` where it can be imported."""
    try:
        _qpth_layer()
    except ImportError:
        return "clarabel"
    return "qpth"


def solve_program(
    program: Program,
    n_slacks: int,
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:  # (B, n), (B, m), (B,)
    """Solve a batch of scaled programs.

    Args:
        program: Programs, scaled to order one.
        n_slacks: Number of slacks, the last variables; they have no quadratic term.

    Returns:
        Solutions, multipliers, residuals of the optimality conditions, and names of the solvers.

    Raises:
        QPError: If a program has no solution or none that satisfies the conditions.
    """
    if qp_solver() == "clarabel":
        parts = [_clarabel(program.element(i))[:2] for i in range(len(program.linear))]
        start = torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])
    else:
        start = _qpth(program, n_slacks)
    z, multipliers = program.polish(*start)
    residual = program.residual(z, multipliers)
    names = [qp_solver()] * len(z)
    for i in (residual > _TOLERANCE).nonzero()[:, 0].tolist():
        z[i], multipliers[i], residual[i], names[i] = _solve_single(program, i, n_slacks)
    return z, multipliers, residual, tuple(names)


def _solve_single(
    program: Program,
    i: int,
    n_slacks: int,
) -> tuple[Tensor, Tensor, Tensor, str]:  # (n,), (m,), ()
    single = program.element(i)
    if len(program.linear) > 1 and qp_solver() == "qpth":
        z, multipliers = single.polish(*_qpth(single, n_slacks))
        residual = single.residual(z, multipliers)
        if residual <= _TOLERANCE:
            return z[0], multipliers[0], residual[0], "qpth alone"
    z, multipliers, status = _clarabel(single)
    z, multipliers = single.polish(z, multipliers)
    residual = single.residual(z, multipliers)
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
    """Solve with qpth; the result is not verified and may contain NaN."""
    n = program.linear.shape[1]
    ridge = torch.full((n,), _RIDGE, dtype=torch.float64)
    ridge[n - n_slacks :] = _SLACK_RIDGE
    rows = program.rows.clone()
    empty = (rows == 0).all(2)
    rows[..., 0] += empty  # a distant bound on z_1: empty rows make qpth divide by zero
    limits = torch.where(empty, _FAR, program.limits.clamp(max=_FAR))
    none = torch.empty(0, dtype=torch.float64)
    hessian = program.hessian + torch.diag(ridge)
    try:
        with torch.enable_grad():  # qpth stores multipliers only for a backward pass
            linear = program.linear.clone().requires_grad_()
            z = _qpth_layer()(hessian, linear, rows, limits, none, none)
        multipliers: Tensor = z.grad_fn.lams
    except RuntimeError:  # a singular factorisation
        return torch.full_like(linear, torch.nan), torch.zeros_like(limits)
    return z.detach(), torch.where(empty, 0.0, multipliers)


@cache
def _qpth_layer() -> Callable[..., Any]:
    with warnings.catch_warnings():  # qpth's docstrings contain invalid escapes
        warnings.simplefilter("ignore")
        from qpth.qp import QPFunction
    layer: Callable[..., Any] = QPFunction(eps=_CLOSE, verbose=-1, notImprovedLim=20, maxIter=60)
    return layer


def _clarabel(program: Program) -> tuple[Tensor, Tensor, str]:  # (1, n), (1, m)
    """Solve a batch of one program with clarabel; return minimum, multipliers and status."""
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
