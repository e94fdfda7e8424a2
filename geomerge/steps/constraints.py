r"""Steps that keep linear budgets: what a step may cost each class, task or layer.

.. math:: \min_\theta\ \theta'(g + \mu I)\theta - \beta\,v'\theta \quad \text{with } C\theta \le d

The p rows of C are gradients of what is kept below the limits d. The step without budgets is
taken where it keeps them; else their shadow prices come from a program in p variables, however
many weights there are. With g = I this is the projection of GEM (Lopez-Paz & Ranzato 2017).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metrics import EigenCoordinates, Metric
from geomerge.steps.qp.solve import solve_qp

__all__ = [
    "BudgetStep",
    "Dual",
    "StackedCoordinates",
    "budget_step",
    "budget_steps",
    "nonzero_rows",
    "solve_dual",
]


@dataclass(frozen=True)
class BudgetStep:
    """A tangent that keeps its budgets, and what they cost it.

    Attributes:
        tangent: theta, shape (n,).
        damping: mu.
        norm: |theta|.
        predicted: theta' g theta, the functional change that the metric predicts.
        multipliers: Shadow prices: by how much the objective would fall per unit by which each
            limit were raised, shape (p,); 0 for rows that are slack.
        excess: C theta - d, shape (p,); over 0 only where limits contradict each other.
        residual: By how much the program's optimality conditions fail; 0 where none was solved.
        called_qp: Whether the step without budgets breaks one, so that a program was solved.
    """

    tangent: Tensor
    damping: float
    norm: float
    predicted: float
    multipliers: Tensor
    excess: Tensor
    residual: float
    called_qp: bool


def budget_step(
    metric: Metric,
    v: Tensor,  # (n,)
    rows: Tensor,  # (p, n)
    limits: Tensor,  # (p,)
    damping: float,
    beta: float | None = None,
) -> BudgetStep:
    """Return the best step that keeps every budget.

    Args:
        metric: g.
        v: The direction wanted.
        rows: C. A row that is zero beside the longest one bounds nothing.
        limits: d; infinity is no limit.
        damping: mu, positive.
        beta: How much reaching v is worth beside the functional change; None ties it to mu as
            2 (floor + mu), the largest that without budgets overshoots v in no direction.

    Returns:
        The step; where limits contradict each other, one that breaks them as little as possible,
        each in units of what reaching it costs.

    Raises:
        NumericalError: If v, rows or limits are not finite.
    """
    dampings = torch.tensor([damping], dtype=torch.float64)
    return budget_steps(metric, v, rows, limits[None], dampings, beta)[0]


def budget_steps(
    metric: Metric,
    v: Tensor,  # (n,)
    rows: Tensor,  # (p, n)
    limits: Tensor,  # (B, p) or (1, p)
    dampings: Tensor,  # (B,) or (1,)
    beta: float | None = None,
) -> list[BudgetStep]:
    """Return a step for each damping and limits, all from one batch of programs.

    Args:
        metric: g.
        v: The direction wanted.
        rows: C.
        limits: d of each step, or of all of them.
        dampings: mu of each step, or of all of them.
        beta: As in :func:`budget_step`.

    Returns:
        What :func:`budget_step` gives for each, in order.

    Raises:
        NumericalError: If v, rows or limits are not finite.
    """
    batch = max(len(limits), len(dampings))
    limits = limits.cpu().double().expand(batch, -1)
    mus = dampings.double().expand(batch).tolist()
    kept = nonzero_rows(v, rows, limits)
    stack = StackedCoordinates.of(metric, [*rows[kept.to(rows.device)], v])
    tied = [[2 * (metric.min_eigenvalue + mu) if beta is None else beta] for mu in mus]
    betas = torch.tensor(tied, dtype=torch.float64)

    gram = torch.stack([stack.gram(mu) for mu in mus]) / 2
    dual = solve_dual(gram[:, :-1, :-1], betas * gram[:, :-1, -1] - limits[:, kept])
    multipliers = torch.zeros_like(limits).index_copy(1, kept, dual.multipliers)
    excess = (-limits).index_copy(1, kept, dual.excess)
    coefficients = torch.cat([-dual.multipliers, betas], dim=1) / 2
    steps = []
    for i, mu in enumerate(mus):
        theta = stack.solve(coefficients[i], mu)
        steps.append(
            BudgetStep(
                theta.compose(theta.parts),
                mu,
                theta.sum(torch.ones_like) ** 0.5,
                theta.sum(lambda s: s),
                multipliers[i],
                excess[i],
                float(dual.residuals[i]),
                bool(dual.called_qp[i]),
            )
        )
    return steps


def nonzero_rows(
    v: Tensor,  # (n,)
    rows: Tensor,  # (p, n)
    limits: Tensor,  # (B, p)
) -> Tensor:  # (k,)
    """Return the numbers of the rows that are not zero up to rounding.

    Args:
        v: The direction wanted.
        rows: C.
        limits: d.

    Raises:
        NumericalError: If something is not finite; limits may be infinite upwards.
    """
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu()
    finite = {"direction": v, "rows": lengths, "limits": limits.nan_to_num(torch.nan, 0)}
    for name, tensor in finite.items():
        if not tensor.isfinite().all():
            raise NumericalError(
                f"the {name} of a step with budgets hold NaN or infinity, expected finite numbers; "
                "look for the first step after which the weights are not finite"
            )
    longest = lengths.amax() if len(rows) else 0.0
    kept: Tensor = (lengths > torch.finfo(rows.dtype).eps * longest).nonzero()[:, 0]
    return kept


# The bound on a multiplier, beside the largest that any row would have alone. Rows that can be
# met are met under it, unless two of them are opposite to four digits.
_PRICE = 1e4
_ROUNDING = 1e-12
_CHUNK = 1 << 22  # numbers brought to float64 at a time


@dataclass(frozen=True)
class StackedCoordinates:
    """Eigen coordinates of several vectors in one metric.

    Attributes:
        vectors: Coordinates of each vector, all along the same directions.
    """

    vectors: list[EigenCoordinates]

    @classmethod
    def of(cls, metric: Metric, vectors: Iterable[Tensor]) -> StackedCoordinates:
        """Split every vector, shape (n,) each, along the metric's eigendirections."""
        return cls([metric.coordinates(vector) for vector in vectors])

    def gram(self, damping: float, power: int = 1) -> Tensor:  # (k, k)
        """Return the inner products of the k vectors under (g + damping I)^-power, in float64."""
        k = len(self.vectors)
        width = max(_CHUNK // k, 1)
        total = torch.zeros(k, k, dtype=torch.float64)
        for j, eigenvalue in enumerate(self.vectors[0].eigenvalues):
            parts = [coordinates.parts[j] for coordinates in self.vectors]
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
    ) -> EigenCoordinates:
        """Return (g + damping I)^-1 times the sum of the vectors with these coefficients.

        The sum is taken in float64, because rows that contradict each other cancel in it.
        """
        first = self.vectors[0]
        used = [(float(c), s) for c, s in zip(coefficients, self.vectors, strict=True) if c != 0]
        parts = []
        for j, eigenvalue in enumerate(first.eigenvalues):
            total = torch.zeros_like(first.parts[j], dtype=torch.float64)
            for coefficient, coordinates in used:
                total += coefficient * coordinates.parts[j].double()
            parts.append((total / (eigenvalue.double() + damping)).to(first.parts[j].dtype))
        return EigenCoordinates(parts, first.eigenvalues, first.compose)


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
