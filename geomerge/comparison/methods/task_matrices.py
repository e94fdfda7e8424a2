"""Task matrices merged layer by layer: ISO-C, TSV-M and WUDI, without data.

A task matrix is what a fine-tune changed in one matrix of the base. All else is averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.layers import matrix_layers
from geomerge.comparison.methods.task_vectors import ancestor_of, pick_scale
from geomerge.comparison.registry import MethodResult, method
from geomerge.networks.network import Network

__all__ = [
    "isotropic",
    "least_interference",
    "merge_task_matrices",
    "orthogonal_singular_vectors",
]

# Function of the task matrices of a layer, shape (T, d_out, d_in), that returns the merged one.
Merge: TypeAlias = Callable[[Tensor], Tensor]

_RIDGE = 1e-10  # of the mean diagonal; in directions that no task changed the start stays


def merge_task_matrices(
    network: Network,
    base: Tensor,  # (n,)
    networks: Sequence[Tensor],  # (n,) each
    merge: Merge,
    heads: Sequence[str] = (),
) -> Tensor:  # (n,)
    """Return the move from the base: merged task matrices, the mean task vector for all else.

    Args:
        network: Network.
        base: Weights of the common ancestor.
        networks: Weights of the networks fine-tuned from it.
        merge: Function of the task matrices of a layer, shape (T, d_out, d_in) in float64, that
            returns the merged one. A convolution is the matrix of its flattened kernels.
        heads: Names of layers whose task vectors are averaged too: those of separate heads.
    """
    vectors = torch.stack([w - base for w in networks])
    total = vectors.mean(dim=0)
    for name, layer in matrix_layers(network).items():
        if name in heads:
            continue
        span = network.slices[f"{name}.weight"]
        rows = len(layer.get_parameter("weight"))
        matrices = vectors[:, span].reshape(len(networks), rows, -1).double()
        total[span] = merge(matrices).reshape(-1).to(total)
    return total


def isotropic(
    matrices: Tensor,  # (T, d_out, d_in)
) -> Tensor:  # (d_out, d_in)
    """Return the sum of matrices with the mean of its singular values in place of each.

    Marczak et al. 2025, arXiv 2502.04959, section 4.

    Args:
        matrices: Task matrices of one layer.
    """
    u, values, v = torch.linalg.svd(matrices.sum(dim=0), full_matrices=False)
    found: Tensor = values.mean() * (u @ v)
    return found


def orthogonal_singular_vectors(
    matrices: Tensor,  # (T, d_out, d_in)
) -> Tensor:  # (d_out, d_in)
    """Return the sum of truncated matrices, the singular vectors of all made orthogonal.

    Gargiulo et al. 2025, arXiv 2412.00081, algorithm 1: of each matrix the first 1/T of the
    singular vectors stays; those of all tasks, side by side, are replaced by the nearest
    orthonormal ones.

    Args:
        matrices: Task matrices of one layer.
    """
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    kept = max(1, values.shape[1] // len(matrices))
    left = torch.cat([*u[:, :, :kept]], dim=1)
    right = torch.cat([*v[:, :kept]], dim=0)
    merged: Tensor = (_orthonormal(left) * values[:, :kept].reshape(-1)) @ _orthonormal(right)
    return merged


def _orthonormal(matrix: Tensor) -> Tensor:
    """Return the matrix with orthonormal rows or columns that is nearest (Procrustes)."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found: Tensor = u @ v
    return found


def least_interference(
    matrices: Tensor,  # (T, d_out, d_in)
) -> Tensor:  # (d_out, d_in)
    r"""Return the M that minimises sum_t |(M - D_t) D_t'|^2 / |D_t|^2.

    Cheng et al. 2025, arXiv 2503.08099: the rows of a task matrix D_t stand for the inputs of the
    layer. The paper descends from the sum of the matrices by 300 steps of Adam, at a rate for
    networks of its size; here is the point that the descent ends at, of several minima the one
    nearest to the sum.

    Args:
        matrices: Task matrices of one layer.
    """
    start = matrices.sum(dim=0)
    norms = matrices.square().sum(dim=(1, 2)).clamp(min=1e-300)
    grams = matrices.mT @ matrices / norms.view(-1, 1, 1)
    total = grams.sum(dim=0)
    pull = ((matrices - start) @ grams).sum(dim=0)
    ridge = (_RIDGE * total.diagonal().mean()).clamp(min=1e-300)
    total.diagonal().add_(ridge)
    merged: Tensor = start + torch.linalg.solve(total, pull, left=False)
    return merged


@method("iso-c", "weights", "summed task matrices with equal singular values (ISO-C)")
def iso_c(context: Context) -> MethodResult:
    """Add the isotropic sum of both task matrices, the mean for all else, at the best scale."""
    return _scaled(context, isotropic)


@method("tsv-m", "weights", "truncated task matrices with orthogonal singular vectors (TSV-M)")
def tsv_m(context: Context) -> MethodResult:
    """Add the task matrices with orthogonal singular vectors, at the best scale."""
    return _scaled(context, orthogonal_singular_vectors)


@method("wudi", "weights", "the task matrix least disturbed on the rows of both (WUDI)")
def wudi(context: Context) -> MethodResult:
    """Add the matrices of least interference, which the paper does not scale."""
    base = ancestor_of(context)
    w = base + _merged(context, base, least_interference)
    return MethodResult(context.settled(context.buffers_of(w, context.space.middle())))


def _scaled(context: Context, merge: Merge) -> MethodResult:
    move = _merged(context, ancestor_of(context), merge)
    return pick_scale(context, lambda base, scale: base + scale * move)


def _merged(context: Context, base: Tensor, merge: Merge) -> Tensor:
    networks = [context.a.weights, context.b.weights]
    heads = context.prepared.heads.layers
    return merge_task_matrices(context.network, base, networks, merge, heads)
