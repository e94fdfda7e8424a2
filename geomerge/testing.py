"""The slow truth: dense matrices for tiny networks, to compare everything fast with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev

from geomerge.metric import KroneckerMetric, output_map
from geomerge.network import Network

__all__ = ["dense_jacobian", "dense_kronecker", "dense_metric"]


def dense_jacobian(
    network: Network,
    w: Tensor,  # (n,)
    x: Tensor,  # (B, ...)
    output: str = "logits",
) -> Tensor:  # (B, m, n)
    """Return the derivatives of the mapped outputs by all weights."""

    def phi(v: Tensor) -> Tensor:
        return output_map(network.outputs(v, x), output)

    jacobian: Tensor = jacrev(phi)(w)
    return jacobian


def dense_metric(
    network: Network,
    w: Tensor,  # (n,)
    x: Tensor,  # (B, ...)
    output: str = "logits",
) -> Tensor:  # (n, n)
    """Return g = J'J / B, arXiv 2012.09605 eq. (2) as a mean over inputs."""
    jacobian = dense_jacobian(network, w, x, output).flatten(0, 1)
    return jacobian.T @ jacobian / len(x)


def dense_kronecker(metric: KroneckerMetric) -> Tensor:  # (n, n)
    """Return the matrix of a Kronecker metric, built from its factors by ``torch.kron``."""
    g = torch.zeros(metric.n, metric.n, dtype=metric.layers[0].inputs.vectors.dtype)
    index = torch.arange(metric.n)
    for layer in metric.layers:
        at = layer.matrix(index).reshape(-1)  # row by row: B varies slowest
        block = torch.kron(layer.outputs.dense(), layer.inputs.dense())
        g[at[:, None], at[None, :]] = block
    if metric.rest:
        at = torch.cat([index[s] for s in metric.rest])
        g[at, at] = metric.diagonal
    return g
