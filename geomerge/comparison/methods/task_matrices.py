"""Merging of task matrices by layer and without data: ISO-C, TSV-M and WUDI.

A task matrix is the change of one weight matrix by fine-tuning. All other weights are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.layers import LayerMatrix, matrix_layers
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

_RIDGE = 1e-10  # relative to the mean diagonal; unchanged directions keep the start


def merge_task_matrices(
    network: Network,
    base: Tensor,  # (n,)
    networks: Sequence[Tensor],  # (n,) each
    merge: Merge,
    heads: Sequence[str] = (),
) -> Tensor:  # (n,)
    """Return the change of the base: merged task matrices, and mean task vectors elsewhere.

    Args:
        network: Network.
        base: Weights of the common ancestor.
        networks: Weights of the networks fine-tuned from it.
        merge: Function of a layer's task matrices, shape (T, d_out, d_in) in float64, that returns
            the merged one. Kernels of a convolution are flattened to a matrix.
        heads: Names of layers whose task vectors are averaged as well, those of separate heads.
    """
    vectors = torch.stack([w - base for w in networks])
    total = vectors.mean(dim=0)
    for name, layer in matrix_layers(network).items():
        if name in heads:
            continue
        matrix = LayerMatrix(network, name, layer)
        matrix.write(merge(matrix.of(vectors).double()), total)
    return total


def isotropic(
    matrices: Tensor,  # (T, d_out, d_in)
) -> Tensor:  # (d_out, d_in)
    """Return the sum of matrices with all singular values replaced by their mean.

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
    """Return the sum of truncated matrices with orthogonalised singular vectors.

    Gargiulo et al. 2025, arXiv 2412.00081, algorithm 1: the leading 1/T of the singular vectors of
    each matrix are kept; the concatenation over tasks is replaced by the nearest orthonormal
    matrix.

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
    """Return the nearest matrix with orthonormal rows or columns (Procrustes problem)."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found: Tensor = u @ v
    return found


def least_interference(
    matrices: Tensor,  # (T, d_out, d_in)
) -> Tensor:  # (d_out, d_in)
    r"""Return the M that minimises sum_t |(M - D_t) D_t'|^2 / |D_t|^2.

    Cheng et al. 2025, arXiv 2503.08099: the rows of a task matrix D_t approximate the layer's
    inputs. The paper descends from the sum of the matrices by 300 steps of Adam; here the minimum
    is computed in closed form, and the one nearest to the sum if it is not unique.

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
    """Add the isotropic sums of task matrices, and means elsewhere, at the best scale."""
    return _scaled(context, isotropic)


@method("tsv-m", "weights", "truncated task matrices with orthogonal singular vectors (TSV-M)")
def tsv_m(context: Context) -> MethodResult:
    """Add the task matrices with orthogonal singular vectors, at the best scale."""
    return _scaled(context, orthogonal_singular_vectors)


@method("wudi", "weights", "task matrices of least interference on the rows of both (WUDI)")
def wudi(context: Context) -> MethodResult:
    """Add the task matrices of least interference, unscaled as in the paper."""
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
