"""ISO-C (Marczak et al. 2025, arXiv 2502.04959): summed task matrices of equal singular values."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.layers import matrix_layers
from geomerge.comparison.methods.task_vectors import pick_scale
from geomerge.comparison.registry import MethodResult, method

__all__ = ["isotropic"]


def isotropic(
    matrix: Tensor,  # (d_out, d_in)
) -> Tensor:  # (d_out, d_in)
    """Return a matrix with the same singular vectors and the mean of its singular values in all."""
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    found: Tensor = values.mean() * (u @ v)
    return found.to(matrix)


@method("iso-c", "weights", "summed task matrices with equal singular values (ISO-C)")
def iso_c(context: Context) -> MethodResult:
    """Add the isotropic sum of both task matrices, the mean for all else, at the best scale."""
    network, networks = context.network, [context.a.weights, context.b.weights]
    layers = matrix_layers(network)

    def merged(base: Tensor, scale: float) -> Tensor:
        total = torch.stack([w - base for w in networks]).sum(dim=0)
        moved = base + total / len(networks)
        for name, layer in layers.items():
            span = network.slices[f"{name}.weight"]
            matrix = total[span].view(len(layer.get_parameter("weight")), -1)
            moved[span] = base[span] + scale * isotropic(matrix).reshape(-1)
        return moved

    return pick_scale(context, merged)
