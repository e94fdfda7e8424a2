r"""KKT conditions of quadratic programs: residuals, and solutions for given active rows.

A point z minimises :math:`\frac12 z'Qz + p'z` with :math:`Gz \le h` if and only if there are
multipliers :math:`\lambda` with

.. math:: Qz + p + G'\lambda = 0,\quad Gz \le h,\quad \lambda \ge 0,\quad \lambda_i (Gz-h)_i = 0.

For known active rows (those that hold with equality) this is a linear system. Its solution gives a
new set of active rows; this iteration is a semismooth Newton method (Hintermueller, Ito & Kunisch
2002), which converges to rounding error from a start close to the solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Program"]

_SHIFT = 1e-9  # makes the system regular if active rows are dependent
_REFINEMENTS = 3  # remove the effect of the shift
_GUESSES = 12


@dataclass(frozen=True)
class Program:
    """Batch of quadratic programs whose coefficients are scaled to order one.

    Attributes:
        hessian: Matrices Q, positive semidefinite, shape (B, n, n).
        linear: Vectors p, shape (B, n).
        rows: Matrices G, shape (B, m, n); a row of zeros has limit 1.
        limits: Limits h, finite, shape (B, m).
    """

    hessian: Tensor
    linear: Tensor
    rows: Tensor
    limits: Tensor

    def element(self, i: int) -> Program:
        """Return program i as a batch of one."""
        at = slice(i, i + 1)
        return Program(self.hessian[at], self.linear[at], self.rows[at], self.limits[at])

    def excess(
        self,
        z: Tensor,  # (B, n)
    ) -> Tensor:  # (B, m)
        """Return Gz - h, positive for violated rows."""
        return _times(self.rows, z) - self.limits

    def active(
        self,
        z: Tensor,  # (B, n)
        multipliers: Tensor,  # (B, m)
    ) -> Tensor:  # (B, m)
        """Return the mask of active rows of an approximate solution."""
        return multipliers + self.excess(z) > 0

    def residual(
        self,
        z: Tensor,  # (B, n)
        multipliers: Tensor,  # (B, m)
    ) -> Tensor:  # (B,)
        """Return the largest violation of the four conditions, infinite for NaN."""
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
            lower: Right-hand side of the second block; rows outside of A are ignored.

        Returns:
            x, and y with zeros for rows outside of A.
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
        """Improve approximate solutions to rounding error by iterating over active rows.

        Args:
            z: Approximate minima.
            multipliers: Approximate multipliers.

        Returns:
            The minima and multipliers of smallest residual among the iterates and the given ones.
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
