"""Dense Jacobians, metrics and Christoffel symbols of tiny networks, by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from geomerge.metrics import KroneckerMetric, output_map
from geomerge.metrics.linearisation import differentiable
from geomerge.networks.batches import Batch, batch_size, single
from geomerge.networks.network import Network

__all__ = [
    "dense_christoffel",
    "dense_jacobian",
    "dense_kronecker",
    "dense_metric",
    "push",
    "push_derivatives",
]


def dense_jacobian(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (B, ...)
    output: str = "logits",
) -> Tensor:  # (B, m, n)
    """Return derivatives of the mapped outputs with respect to weights and running statistics."""
    with differentiable():
        jacobian: Tensor = jacrev(_mapped(network, x, output))(w)
    return jacobian


def dense_metric(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (B, ...)
    output: str = "logits",
) -> Tensor:  # (n, n)
    """Return g = J'J / B, arXiv 2012.09605 eq. (2) as a mean over inputs."""
    jacobian = dense_jacobian(network, w, x, output).flatten(0, 1)
    return jacobian.T @ jacobian / batch_size(x)


def dense_kronecker(metric: KroneckerMetric) -> Tensor:  # (n, n)
    """Return the matrix of a Kronecker metric, built from its factors by ``torch.kron``."""
    g = torch.zeros(metric.n, metric.n, dtype=metric.diagonal.dtype)
    index = torch.arange(metric.n)
    for layer in metric.layers:
        at = layer.matrix(index).reshape(-1)  # row by row: B varies slowest
        block = torch.kron(layer.outputs.dense(), layer.inputs.dense())
        g[at[:, None], at[None, :]] = block
    if metric.rest:
        at = torch.cat([index[s] for s in metric.rest])
        g[at, at] = metric.diagonal
    return g


def dense_christoffel(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (B, ...)
    output: str = "logits",
) -> Tensor:  # (n, n, n)
    """Return the Christoffel symbols of the first kind, Gamma[k, i, j], as a mean over inputs."""
    basis = torch.eye(network.n, dtype=w.dtype)
    second, first = push_derivatives(network, w.expand(basis.shape), basis, x, output)
    return torch.einsum("rk,irj->kij", first[0], second)


def push(
    network: Network,
    w: Tensor,  # (Q, n)
    u: Tensor,  # (Q, n)
    x: Batch,  # (B, ...)
    output: str,
) -> Tensor:  # (Q, B m)
    """Return J(w) u / sqrt(B), whose square is u' g u."""
    with differentiable():
        result: Tensor = _for_all(_push_one(network, output))(w, u, x).flatten(1)
    return result / math.sqrt(batch_size(x))


def push_derivatives(
    network: Network,
    w: Tensor,  # (Q, n)
    u: Tensor,  # (Q, n)
    x: Batch,  # (B, ...)
    output: str,
) -> tuple[Tensor, Tensor]:  # (Q, B m, n) twice
    """Return the derivatives of J(w) u / sqrt(B) with respect to w and to u."""
    with differentiable():
        by_w, by_u = _for_all(jacrev(_push_one(network, output), argnums=(0, 1)))(w, u, x)
    return by_w.flatten(1, 2) / math.sqrt(batch_size(x)), by_u.flatten(1, 2) / math.sqrt(
        batch_size(x)
    )


def _push_one(network: Network, output: str) -> Callable[[Tensor, Tensor, Batch], Tensor]:
    """Return J(w) u of one input: of all inputs at once most second derivatives are zero."""

    def one_of(w: Tensor, u: Tensor, one: Batch) -> Tensor:  # (m,)
        jacobian: Tensor = jacrev(_mapped(network, single(one), output))(w)
        return jacobian.squeeze(0) @ u

    return one_of


def _for_all(function: Callable[..., Any]) -> Callable[..., Any]:
    return vmap(vmap(function, in_dims=(None, None, 0)), in_dims=(0, 0, None))


def _mapped(network: Network, x: Batch, output: str) -> Callable[[Tensor], Tensor]:
    return lambda w: output_map(network.outputs(w, x), output)
