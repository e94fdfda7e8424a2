r"""The dual of a step under linear budgets: a program in one variable per budget.

With :math:`H = 2(g + \mu I)` the step is :math:`\theta = H^{-1}(\beta v - C'\lambda)`, where
:math:`\lambda` solves

.. math:: \min_{0 \le \lambda \le \rho}\ \tfrac12 \lambda'CH^{-1}C'\lambda
          - \lambda'(\beta CH^{-1}v - d).

All it needs of the n weights are inner products under :math:`H^{-1}`, which in the metric's
eigendirections are sums of coordinates divided by :math:`2(s + \mu)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.metric import Metric, Spectrum
from geomerge.steps.qp import solve_qp

__all__ = ["Dual", "SpectrumStack", "solve_dual"]

# The bound on a multiplier, beside the largest that any row would have alone. Rows that can be
# met are met under it, unless two of them are opposite to four digits.
_PRICE = 1e4
_ROUNDING = 1e-12
_CHUNK = 1 << 22  # numbers brought to float64 at a time


@dataclass(frozen=True)
class SpectrumStack:
    """The spectra of several vectors under one metric."""

    spectra: list[Spectrum]

    @classmethod
    def of(cls, metric: Metric, vectors: Iterable[Tensor]) -> SpectrumStack:
        """Split every vector, shape (n,) each, along the metric's eigendirections."""
        return cls([metric.spectrum(vector) for vector in vectors])

    def gram(self, damping: float, power: int = 1) -> Tensor:  # (k, k)
        """Return the inner products of the k vectors under (g + damping I)^-power, in float64."""
        k = len(self.spectra)
        width = max(_CHUNK // k, 1)
        total = torch.zeros(k, k, dtype=torch.float64)
        for j, eigenvalue in enumerate(self.spectra[0].eigenvalues):
            parts = [spectrum.parts[j] for spectrum in self.spectra]
            weight = ((eigenvalue.double() + damping) ** -power).expand(parts[0].shape).reshape(-1)
            flat = [part.reshape(-1) for part in parts]
            for at in range(0, len(weight), width):
                block = torch.stack([part[at : at + width] for part in flat]).double()
                total += ((block * weight[at : at + width]) @ block.mT).cpu()
        return total

    def solve(
        self,
        coefficients: Tensor,  # (k,)
        damping: float,
    ) -> Spectrum:
        """Return (g + damping I)^-1 times the sum of the vectors with these coefficients.

        The sum is taken in float64, because rows that contradict each other cancel in it.
        """
        first = self.spectra[0]
        used = [(float(c), s) for c, s in zip(coefficients, self.spectra, strict=True) if c != 0]
        parts = []
        for j, eigenvalue in enumerate(first.eigenvalues):
            total = torch.zeros_like(first.parts[j], dtype=torch.float64)
            for coefficient, spectrum in used:
                total += coefficient * spectrum.parts[j].double()
            parts.append((total / (eigenvalue.double() + damping)).to(first.parts[j].dtype))
        return Spectrum(parts, first.eigenvalues, first.compose)


@dataclass(frozen=True)
class Dual:
    """Solutions of a batch of dual programs.

    Attributes:
        multipliers: lambda, shape (B, p), differentiable.
        excess: C theta - d, shape (B, p), over 0 only where limits contradict each other.
        residuals: By how much the optimality conditions fail, shape (B,).
        called_qp: Which elements break a row at lambda = 0, shape (B,).
    """

    multipliers: Tensor
    excess: Tensor
    residuals: Tensor
    called_qp: Tensor


def solve_dual(
    stiffness: Tensor,  # (B, p, p)
    excess: Tensor,  # (B, p)
) -> Dual:
    """Solve the programs of the elements that break a row, with the rows that matter to them.

    Args:
        stiffness: C H^-1 C', without rows of zeros.
        excess: beta C H^-1 v - d: by how much the step without budgets breaks each row.

    Returns:
        The solutions, without a program having been called where no row is broken.
    """
    called = (excess > 0).any(1)
    multipliers = torch.zeros_like(excess)
    residuals = torch.zeros(len(excess), dtype=torch.float64)
    if called.any():
        solved, residuals[called] = _solve_broken(stiffness[called], excess[called])
        multipliers = multipliers.index_put((called,), solved)
    left = excess - (stiffness @ multipliers[:, :, None])[:, :, 0]
    return Dual(multipliers, left, residuals, called)


def _solve_broken(
    stiffness: Tensor,  # (B, p, p)
    excess: Tensor,  # (B, p)
) -> tuple[Tensor, Tensor]:  # (B, p), (B,)
    """Solve with the broken rows first, then with those as well that this breaks, and so on.

    A row that is far from its limit would set the scale of the whole program; until it matters its
    variable stands alone at zero.
    """
    lengths = stiffness.detach().diagonal(dim1=1, dim2=2).sqrt()
    cosines = stiffness / (lengths[:, :, None] * lengths[:, None, :])
    excess = excess / lengths
    unit = excess.detach().amax(1, keepdim=True)
    p = excess.shape[1]
    one = torch.eye(p, dtype=torch.float64)
    rows = torch.cat([-one, one])
    limits = torch.cat([torch.zeros(len(excess), p), (_PRICE * unit).expand(-1, p)], dim=1)
    matter = excess > 0
    while True:
        solution = solve_qp(
            torch.where((matter[:, :, None] & matter[:, None, :]) | (one > 0), cosines, 0.0),
            torch.where(matter, -excess, unit),
            rows,
            limits,
        )
        # A variable at zero has a multiplier; what either lacks of zero is rounding.
        waits = solution.multipliers[:, :p] > solution.z
        solved = torch.where(waits, 0.0, solution.z).relu()
        left = excess - (cosines @ solved[:, :, None])[:, :, 0]
        late = (left > _ROUNDING * unit) & ~matter
        if not late.any():
            return solved / lengths, solution.certificate
        matter = matter | late
