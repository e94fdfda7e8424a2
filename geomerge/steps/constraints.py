r"""Steps with linear constraints on the cost of a step for each class, task or layer.

.. math:: \min_\theta\ \theta'(g + \mu I)\theta - \beta\,v'\theta \quad \text{with } C\theta \le d

The p rows of C are gradients of the constrained quantities, and d are their limits. If the
unconstrained step satisfies them it is the solution. Otherwise the multipliers (shadow prices) are
the solution of a dual program in p variables, whatever the number of weights. With g = I this is
the projection of GEM (Lopez-Paz & Ranzato 2017).
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
    """Tangent that satisfies its constraints, with their shadow prices.

    Attributes:
        tangent: Step theta, shape (n,).
        damping: Damping mu.
        norm: Norm |theta|.
        predicted: Functional change theta' g theta that the metric predicts.
        multipliers: Shadow prices, the decrease of the objective per unit of each limit, shape
            (p,); 0 for inactive rows.
        excess: C theta - d, shape (p,); positive only if the constraints are infeasible.
        residual: Residual of the program's optimality conditions; 0 if none was solved.
        called_qp: Whether the unconstrained step violates a row, so that a program was solved.
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
    """Return the best step that satisfies all constraints.

    Args:
        metric: Metric g.
        v: Direction of the step.
        rows: Rows of C; rows of negligible norm relative to the longest are ignored.
        limits: Limits d; infinity means no limit.
        damping: Damping mu, positive.
        beta: Weight of the direction against the functional change; None sets it to
            2 (min_eigenvalue + mu), the largest value for which the unconstrained step overshoots
            v in no direction.

    Returns:
        The step. If the constraints are infeasible, their violation is minimal, each in units of
        the cost of satisfying it.

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
    """Return one step for each pair of damping and limits, solved as one batch of programs.

    Args:
        metric: Metric g.
        v: Direction of the steps.
        rows: Rows of C.
        limits: Limits d of each step, or of all steps.
        dampings: Dampings mu of each step, or of all steps.
        beta: Weight of the direction, as in :func:`budget_step`.

    Returns:
        Steps of :func:`budget_step`, in order.

    Raises:
        NumericalError: If v, rows or limits are not finite.
    """
    batch = max(len(limits), len(dampings))
    limits = limits.cpu().double().expand(batch, -1)
    mus = dampings.double().expand(batch).tolist()
    used = nonzero_rows(v, rows, limits)
    stack = StackedCoordinates.of(metric, [*rows[used.to(rows.device)], v])
    tied = [[2 * (metric.min_eigenvalue + mu) if beta is None else beta] for mu in mus]
    betas = torch.tensor(tied, dtype=torch.float64)

    gram = torch.stack([stack.gram(mu) for mu in mus]) / 2
    dual = solve_dual(gram[:, :-1, :-1], betas * gram[:, :-1, -1] - limits[:, used])
    multipliers = torch.zeros_like(limits).index_copy(1, used, dual.multipliers)
    excess = (-limits).index_copy(1, used, dual.excess)
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
    """Return the indices of the rows that are not zero up to rounding.

    Args:
        v: Direction of the step.
        rows: Rows of C.
        limits: Limits d.

    Raises:
        NumericalError: If a number is not finite; only limits may be plus infinity.
    """
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu()
    finite = {"direction": v, "rows": lengths, "limits": limits.nan_to_num(torch.nan, 0)}
    for name, tensor in finite.items():
        if not tensor.isfinite().all():
            raise NumericalError(
                f"the {name} of a constrained step hold NaN or infinity, expected finite numbers; "
                "look for the first step after which the weights are not finite"
            )
    longest = lengths.amax() if len(rows) else 0.0
    indices: Tensor = (lengths > torch.finfo(rows.dtype).eps * longest).nonzero()[:, 0]
    return indices


# Upper bound of the multipliers relative to the largest single-row multiplier. It excludes no
# feasible set of constraints unless two rows are opposite to four digits.
_PRICE = 1e4
_ROUNDING = 1e-12
_CHUNK = 1 << 22  # numbers converted to float64 at a time


@dataclass(frozen=True)
class StackedCoordinates:
    """Eigen coordinates of several vectors in one metric.

    Attributes:
        vectors: Coordinates of each vector, all along the same directions.
    """

    vectors: list[EigenCoordinates]

    @classmethod
    def of(cls, metric: Metric, vectors: Iterable[Tensor]) -> StackedCoordinates:
        """Return the coordinates of vectors, shape (n,) each, in the eigenbasis of a metric."""
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
        """Return (g + damping I)^-1 times a linear combination of the vectors.

        The combination is computed in float64, since nearly opposite rows cancel in it.

        Args:
            coefficients: Coefficients of the vectors.
            damping: Damping mu.
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
        multipliers: Multipliers lambda, shape (B, p), differentiable.
        excess: C theta - d, shape (B, p), positive only if the constraints are infeasible.
        residuals: Residuals of the optimality conditions, shape (B,).
        called_qp: Mask of the elements that violate a row at lambda = 0, shape (B,).
    """

    multipliers: Tensor
    excess: Tensor
    residuals: Tensor
    called_qp: Tensor


def solve_dual(
    stiffness: Tensor,  # (B, p, p)
    excess: Tensor,  # (B, p)
) -> Dual:
    """Solve the dual programs of the elements that violate a row.

    Args:
        stiffness: C H^-1 C', without rows of zeros.
        excess: Violation beta C H^-1 v - d of each row by the unconstrained step.

    Returns:
        Solutions; elements without a violated row need no program.
    """
    called = (excess > 0).any(1)
    multipliers = torch.zeros_like(excess)
    residuals = torch.zeros(len(excess), dtype=torch.float64)
    if called.any():
        solved, residuals[called] = _solve_violated(stiffness[called], excess[called])
        multipliers = multipliers.index_put((called,), solved)
    left = excess - (stiffness @ multipliers[:, :, None])[:, :, 0]
    return Dual(multipliers, left, residuals, called)


def _solve_violated(
    stiffness: Tensor,  # (B, p, p)
    excess: Tensor,  # (B, p)
) -> tuple[Tensor, Tensor]:  # (B, p), (B,)
    """Solve for the violated rows, adding rows that the solution violates until there are none.

    Rows far from their limits would dominate the scaling of the program. The variable of an
    inactive row is therefore decoupled and zero.
    """
    lengths = stiffness.detach().diagonal(dim1=1, dim2=2).sqrt()
    cosines = stiffness / (lengths[:, :, None] * lengths[:, None, :])
    excess = excess / lengths
    unit = excess.detach().amax(1, keepdim=True)
    p = excess.shape[1]
    one = torch.eye(p, dtype=torch.float64)
    rows = torch.cat([-one, one])
    limits = torch.cat([torch.zeros(len(excess), p), (_PRICE * unit).expand(-1, p)], dim=1)
    active = excess > 0
    while True:
        solution = solve_qp(
            torch.where((active[:, :, None] & active[:, None, :]) | (one > 0), cosines, 0.0),
            torch.where(active, -excess, unit),
            rows,
            limits,
        )
        # Either a variable or its multiplier is zero, up to rounding.
        at_zero = solution.multipliers[:, :p] > solution.z
        solved = torch.where(at_zero, 0.0, solution.z).relu()
        left = excess - (cosines @ solved[:, :, None])[:, :, 0]
        late = (left > _ROUNDING * unit) & ~active
        if not late.any():
            return solved / lengths, solution.certificate
        active = active | late
