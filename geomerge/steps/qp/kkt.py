r"""The optimality conditions of quadratic programs: how well they hold, and solving for them.

A point z is a minimum of :math:`\frac12 z'Qz + p'z` with :math:`Gz \le h` exactly when some
multipliers :math:`\lambda` have

.. math:: Qz + p + G'\lambda = 0,\quad Gz \le h,\quad \lambda \ge 0,\quad \lambda_i (Gz-h)_i = 0.

Once it is known which rows hold with equality (are active) this is one linear system. Its solution
shows which rows should have been active; guessing so again and again is a semismooth Newton
method (Hintermueller, Ito & Kunisch 2002), which ends at rounding error when it starts close.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Program"]

_SHIFT = 1e-9  # keeps the system regular where active rows repeat each other
_REFINEMENTS = 3  # and these take the shift's effect out again
_GUESSES = 12


@dataclass(frozen=True)
class Program:
    """A batch of quadratic programs in units in which everything is of order one.

    Attributes:
        hessian: Q, positive semidefinite, shape (B, n, n).
        linear: p, shape (B, n).
        rows: G, shape (B, m, n); a row of zeros has limit 1.
        limits: h, finite, shape (B, m).
    """

    hessian: Tensor
    linear: Tensor
    rows: Tensor
    limits: Tensor

    def element(self, i: int) -> Program:
        """Return program i alone, as a batch of one."""
        one = slice(i, i + 1)
        return Program(self.hessian[one], self.linear[one], self.rows[one], self.limits[one])

    def excess(
        self,
        z: Tensor,  # (B, n)
    ) -> Tensor:  # (B, m)
        """Return Gz - h, positive where a row is broken."""
        return _times(self.rows, z) - self.limits

    def active(
        self,
        z: Tensor,  # (B, n)
        multipliers: Tensor,  # (B, m)
    ) -> Tensor:  # (B, m)
        """Tell which rows hold with equality, given an approximate solution."""
        return multipliers + self.excess(z) > 0

    def residual(
        self,
        z: Tensor,  # (B, n)
        multipliers: Tensor,  # (B, m)
    ) -> Tensor:  # (B,)
        """Return by how much the worst of the four conditions fails, infinite for NaN."""
        excess = self.excess(z)
        slope = _times(self.hessian, z) + self.linear + _times(self.rows.mT, multipliers)
        conditions = [
            slope.abs(),
            excess.relu(),
            (-multipliers).relu(),
            (multipliers * excess).abs(),
        ]
        return torch.cat(conditions, dim=1).amax(dim=1).nan_to_num(nan=float("inf"))

    def solve(
        self,
        active: Tensor,  # (B, m)
        upper: Tensor,  # (B, n)
        lower: Tensor,  # (B, m)
    ) -> tuple[Tensor, Tensor]:  # (B, n), (B, m)
        """Solve [[Q, G_A'], [G_A, 0]] (x, y) = (upper, lower_A) for the active rows A.

        Args:
            active: Mask of the rows A.
            upper: Right-hand side of the first block.
            lower: Right-hand side of the second; other rows than A are not read.

        Returns:
            x, and y with zeros for rows not in A.
        """
        n = upper.shape[1]
        on = active.to(upper.dtype)
        rows = on[:, :, None] * self.rows
        matrix = torch.cat(
            [
                torch.cat([self.hessian, rows.mT], dim=2),
                torch.cat([rows, torch.diag_embed(on - 1)], dim=2),
            ],
            dim=1,
        )
        shift = torch.cat([torch.full_like(upper, _SHIFT), -_SHIFT * on], dim=1)
        factors = torch.linalg.lu_factor(matrix + torch.diag_embed(shift))
        right = torch.cat([upper, on * lower], dim=1)[:, :, None]
        solution = torch.linalg.lu_solve(*factors, right)
        for _ in range(_REFINEMENTS):
            solution = solution + torch.linalg.lu_solve(*factors, right - matrix @ solution)
        return solution[:, :n, 0], solution[:, n:, 0]

    def polish(
        self,
        z: Tensor,  # (B, n)
        multipliers: Tensor,  # (B, m)
    ) -> tuple[Tensor, Tensor]:  # (B, n), (B, m)
        """Improve approximate solutions to rounding error where their active rows allow it.

        Args:
            z: Approximate minima.
            multipliers: Approximate multipliers.

        Returns:
            Minima and multipliers, for every program the best that were met, those given included.
        """
        best = self.residual(z, multipliers)
        active = self.active(z, multipliers)
        for _ in range(_GUESSES):
            x, y = self.solve(active, -self.linear, self.limits)
            guess = self.active(x, y)
            y = y.relu()
            residual = self.residual(x, y)
            better = (residual < best)[:, None]
            z, multipliers = torch.where(better, x, z), torch.where(better, y, multipliers)
            best = torch.minimum(residual, best)
            if torch.equal(guess, active):
                break
            active = guess
        return z, multipliers


def _times(
    matrix: Tensor,  # (B, k, n)
    vector: Tensor,  # (B, n)
) -> Tensor:  # (B, k)
    return (matrix @ vector[:, :, None])[:, :, 0]
