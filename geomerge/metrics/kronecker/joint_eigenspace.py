r"""Linear systems with a sum of Kronecker products, in the joint eigenspace of its factors.

Truncated factors :math:`A_i = U_i S_i U_i' + \tau_i (I - U_i U_i')` are all isotropic outside of
the span of their eigenvectors. In an orthonormal basis of that span, completed to one of the whole
space, :math:`\sum_i s_i A_i \otimes B_i + \mu` is block diagonal: conjugate gradients solve the
block inside of both spans, whose matrices are as small as the ranks, and the others are direct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from geomerge.metrics.kronecker.factor import Factor
from geomerge.metrics.kronecker.layer import KroneckerLayer

__all__ = ["conjugate_gradients", "solve_in_joint_eigenspace", "spans_all"]

_ITERATIONS = 60
_TOLERANCE = 1e-6  # of the squared residual, in the preconditioner's norm


def spans_all(mean: KroneckerLayer, terms: Sequence[KroneckerLayer]) -> bool:
    """Return whether the eigenvectors of mean factors span those of all terms.

    Args:
        mean: Layer with the mean factors of the terms.
        terms: Layers that were added.
    """
    if any(term.leading_blocks is not None for term in terms):
        return False
    sides = [(mean.inputs, [t.inputs for t in terms]), (mean.outputs, [t.outputs for t in terms])]
    return all(
        whole.full or whole.rank == sum(part.rank for part in parts) for whole, parts in sides
    )


def solve_in_joint_eigenspace(
    mean: KroneckerLayer,
    terms: Sequence[tuple[KroneckerLayer, float]],
    mu: float,
    right: Tensor,  # (d_out, d_in)
) -> Tensor:  # (d_out, d_in)
    """Solve (sum_i s_i A_i x B_i + mu) X = R for a layer's matrix.

    Args:
        mean: Layer with the mean factors, whose eigenvectors span those of all terms; their
            product, times the number of terms, is the preconditioner.
        terms: Layers and their scales s_i.
        mu: Damping.
        right: Right side R.
    """
    a, b = mean.inputs.ready, mean.outputs.ready
    parts, eigenvalues = mean.coordinates(right)
    inputs = [_inside(term.inputs, a.vectors) for term, _ in terms]
    outputs = [scale * _inside(term.outputs, b.vectors) for term, scale in terms]
    diagonal = 1 / (len(terms) * eigenvalues[0] + mu)

    def product(x: Tensor) -> Tensor:
        total = mu * x
        for by_outputs, by_inputs in zip(outputs, inputs, strict=True):
            total.addmm_(by_outputs @ x, by_inputs)
        return total

    found = [conjugate_gradients(product, lambda r: diagonal * r, parts[0])]
    by_input_tails = [term.inputs.tail for term, _ in terms]
    by_output_tails = [scale * term.outputs.tail for term, scale in terms]
    if not a.full:  # isotropic along the inputs: a matrix among the outputs is left
        over = _weighted(outputs, by_input_tails, mu)
        found.append(_outside(_solved(over, parts[1]).T, a.vectors).T)
    if not b.full:
        over = _weighted(inputs, by_output_tails, mu)
        found.append(_outside(_solved(over, parts[1 if a.full else 2].T).T, b.vectors))
    if not a.full and not b.full:
        tails = zip(by_input_tails, by_output_tails, strict=True)
        rest = parts[3] / (sum(x * y for x, y in tails) + mu)
        found.append(_outside(_outside(rest, b.vectors).T, a.vectors).T)
    return mean.from_coordinates(found)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    preconditioned: Callable[[Tensor], Tensor],
    right: Tensor,
) -> Tensor:
    """Solve a positive definite system, to a thousandth of the residual in at most 60 products.

    Args:
        product: Product of the system with a tensor of the right side's shape.
        preconditioned: Product of an approximate inverse with such a tensor.
        right: Right side.
    """
    x, residual = torch.zeros_like(right), right.clone()
    direction = preconditioned(residual)
    rho = first = _dot(residual, direction)
    for _ in range(_ITERATIONS):
        if rho <= 0:
            break
        image = product(direction)
        alpha = rho / max(_dot(direction, image), 1e-300)
        x += alpha * direction
        residual -= alpha * image
        z = preconditioned(residual)
        after = _dot(residual, z)
        if after <= _TOLERANCE * first:  # iterations on rounding errors diverge
            break
        direction = z + (after / rho) * direction
        rho = after
    return x


def _inside(
    factor: Factor,
    basis: Tensor,  # (d, q)
) -> Tensor:  # (q, q)
    """Return a factor in an orthonormal basis."""
    turned = basis.T @ factor.vectors
    tail = 0.0 if factor.full else factor.tail
    found = (turned * (factor.values - tail)) @ turned.T
    found.diagonal().add_(tail)
    return found


def _outside(
    x: Tensor,  # (d, columns)
    basis: Tensor,  # (d, q)
) -> Tensor:  # (d, columns)
    """Return the part of columns that is orthogonal to a basis.

    What rounding left inside of it was divided by small eigenvalues and would count with large
    ones.
    """
    return x - basis @ (basis.T @ x)


def _solved(
    matrix: Tensor,  # (q, q), positive definite
    right: Tensor,  # (q, columns)
) -> Tensor:  # (q, columns)
    root = torch.linalg.cholesky(matrix.double())
    return torch.cholesky_solve(right.double(), root).to(right)


def _weighted(matrices: list[Tensor], weights: list[float], mu: float) -> Tensor:  # (q, q)
    """Return the weighted sum of matrices, plus mu on its diagonal."""
    pairs = zip(matrices, weights, strict=True)
    total = torch.stack([weight * matrix for matrix, weight in pairs]).sum(dim=0)
    total.diagonal().add_(mu)
    return total


def _dot(u: Tensor, v: Tensor) -> float:
    """Return the inner product in double precision."""
    return float(u.flatten().double() @ v.flatten().double())
