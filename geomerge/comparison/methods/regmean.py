"""RegMean (Jin et al. 2023): least squares over the inputs of each matrix layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomerge.comparison.context import Context
from geomerge.comparison.layers import matrix_layers, visit_inputs
from geomerge.comparison.registry import MethodResult, method
from geomerge.data import Inputs
from geomerge.errors import NumericalError
from geomerge.metrics.kernel import position_inputs
from geomerge.networks.network import Network

__all__ = ["layer_grams", "regression_mean"]

INPUTS = 2000  # of each task
_RIDGE = 1e-10  # of the mean diagonal; in directions without inputs the mean stays
SCALES = (1.0, 0.9, 0.5, 0.1)  # alpha, factor of the Gram matrices' off-diagonal entries


def regression_mean(
    matrices: list[Tensor],  # (d_in, d_out) each
    grams: list[Tensor],  # (d_in, d_in) each
) -> Tensor:  # (d_in, d_out)
    r"""Return the W that minimises sum_i |X_i W - X_i W_i|^2, eq. (2) of the paper.

    W = (sum_i G_i)^-1 sum_i G_i W_i with G_i = X_i' X_i. Of several minima the one nearest to the
    mean of the W_i is returned.

    Args:
        matrices: Matrices W_i.
        grams: Gram matrices G_i, in float64.

    Raises:
        NumericalError: If a Gram matrix is not finite.
    """
    mean = torch.stack(matrices).mean(dim=0)
    pulls = [g @ (w - mean) for g, w in zip(grams, matrices, strict=True)]
    total = torch.stack(grams).sum(dim=0)
    ridge = _RIDGE * total.diagonal().mean() * torch.eye(len(total)).to(total)
    factor, failed = torch.linalg.cholesky_ex(total + ridge)
    if failed:
        raise NumericalError("the Gram matrices of a layer's inputs are not finite numbers")
    return mean + torch.cholesky_solve(torch.stack(pulls).sum(dim=0), factor)


def layer_grams(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
) -> dict[str, Tensor]:
    """Return X' X of the inputs of each Linear and Conv2d layer, in float64.

    Rows of X are inputs, tokens or patches, with a one for the bias of a layer that has one.

    Args:
        network: Network.
        w: Weights of the network.
        inputs: Inputs, all of which are passed.
    """
    layers = matrix_layers(network)
    grams: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        rows = position_inputs(layers[name], x, len(x)).flatten(0, 1)
        grams[name] = (rows.T @ rows).double() + grams.get(name, 0.0)

    visit_inputs(network, w, inputs, add)
    return grams


@method(
    "regmean", "activations", "least squares in each Linear and Conv2d layer, the rest averaged"
)
def regmean(context: Context) -> MethodResult:
    """Merge by the Gram matrices of both networks, at the best scale of off-diagonal entries."""
    a, b = context.a, context.b
    network = context.network
    few = [x.sample(INPUTS, context.seed) for x in context.inputs(a, b)]
    grams = [layer_grams(network, e.weights, x) for e, x in zip((a, b), few, strict=True)]
    layers = matrix_layers(network)
    mean = context.space.middle()

    def point(k: int) -> Tensor:
        w = mean.clone()
        for name in grams[0].keys() & grams[1].keys():
            pair = [_scaled(g[name], SCALES[k]) for g in grams]
            matrices = [_matrix(network, layers[name], name, e.weights) for e in (a, b)]
            _put(network, layers[name], name, w, regression_mean(matrices, pair))
        return context.settled(w)

    points = [point(k) for k in range(len(SCALES))]
    best, w = context.pick(len(points), points.__getitem__)
    samples = sum(map(len, few))
    return MethodResult(w, inputs=("a", "b"), samples=samples, chosen={"alpha": SCALES[best]})


def _scaled(gram: Tensor, scale: float) -> Tensor:
    diagonal = gram.diagonal().diag()
    return diagonal + scale * (gram - diagonal)


def _matrix(network: Network, layer: nn.Module, name: str, w: Tensor) -> Tensor:  # (d_in, d_out)
    weight = w[network.slices[f"{name}.weight"]].view(len(layer.get_parameter("weight")), -1)
    if f"{name}.bias" in network.slices:
        weight = torch.cat([weight, w[network.slices[f"{name}.bias"]].unsqueeze(1)], dim=1)
    return weight.T.double()


def _put(network: Network, layer: nn.Module, name: str, w: Tensor, matrix: Tensor) -> None:
    rows = matrix.T.to(w)
    if f"{name}.bias" in network.slices:
        w[network.slices[f"{name}.bias"]] = rows[:, -1]
        rows = rows[:, :-1]
    w[network.slices[f"{name}.weight"]] = rows.reshape(-1)
