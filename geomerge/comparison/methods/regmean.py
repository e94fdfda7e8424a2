"""RegMean (Jin et al. 2023) and RegMean++: least squares on each matrix layer's inputs.

RegMean uses a layer's inputs in each original network. RegMean++ (arXiv 2508.03121) merges layers
in the order of computation and uses inputs computed by the layers merged before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.layers import LayerMatrix, matrix_layers, visit_inputs
from geomerge.comparison.registry import MethodResult, method
from geomerge.data import Inputs
from geomerge.errors import NumericalError
from geomerge.expert import Expert
from geomerge.metrics.kernel import position_inputs
from geomerge.networks.network import Network

__all__ = ["layer_grams", "regress", "regression_mean"]

INPUTS = 2000  # inputs per task
_RIDGE = 1e-10  # relative to the mean diagonal; directions without inputs keep the mean
SCALES = (1.0, 0.9, 0.5, 0.1)  # alpha, factor of the Gram matrices' off-diagonal entries


def regression_mean(
    matrices: list[Tensor],  # (d_in, d_out) each
    grams: list[Tensor],  # (d_in, d_in) each
) -> Tensor:  # (d_in, d_out)
    r"""Return the W that minimises sum_i |X_i W - X_i W_i|^2, eq. (2) of the paper.

    W = (sum_i G_i)^-1 sum_i G_i W_i with G_i = X_i' X_i. If the minimum is not unique, the one
    nearest to the mean of the W_i is returned.

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
    pull = torch.stack(pulls).sum(dim=0)
    factor, failed = torch.linalg.cholesky_ex(total + ridge)
    if not failed:
        return mean + torch.cholesky_solve(pull, factor)
    if not bool(total.isfinite().all()):
        raise NumericalError(
            "the Gram matrices of a layer's inputs are not finite, expected finite activations; "
            "check the networks' outputs on these inputs"
        )
    # Singular, and rounded to less than that: other small eigenvalues are rounded as much.
    values, vectors = torch.linalg.eigh(total)
    known = values > max(float(ridge[0, 0]), -2 * float(values[0]))
    nearest: Tensor = mean + vectors[:, known] @ (vectors[:, known].T @ pull / values[known, None])
    return nearest


def layer_grams(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    only: str | None = None,
) -> dict[str, Tensor]:
    """Return X' X of the inputs of each Linear, Conv2d and Conv1D layer, in float64.

    Rows of X are inputs, tokens or patches, with a one for the bias if the layer has one.

    Args:
        network: Network.
        w: Weights of the network.
        inputs: Inputs of the network, all of which are used.
        only: Name of the only layer to include; None includes all.

    Returns:
        Matrices by name of the layer, in the order of computation.
    """
    layers = matrix_layers(network)
    grams: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        if only not in (None, name):
            return
        rows = position_inputs(layers[name], x, len(x)).flatten(0, 1)
        grams[name] = (rows.T @ rows).double() + grams.get(name, 0.0)

    visit_inputs(network, w, inputs, add)
    return grams


def regress(
    experts: Sequence[Expert],
    grams: Sequence[dict[str, Tensor]],
    w: Tensor,  # (n,)
    scale: float,
    *,
    through: bool = False,
    heads: Sequence[str] = (),
) -> Tensor:  # (n,)
    """Return a point with its matrix layers replaced by regression means of experts.

    Args:
        experts: Experts in one weight space with inputs of their tasks.
        grams: Gram matrices of each expert by layer, from :func:`layer_grams` at its weights.
        w: Point whose matrix layers are replaced, such as the mean of the experts.
        scale: Factor of the Gram matrices' off-diagonal entries, alpha of the paper, in [0, 1].
        through: Whether the inputs of a layer are computed by the layers merged before it
            (RegMean++). Gram matrices are then measured here, and only the names in ``grams`` are
            used.
        heads: Names of layers to leave unchanged, those of separate heads.

    Raises:
        NumericalError: If a Gram matrix is not finite.
    """
    network, w = experts[0].network, w.clone()
    layers = matrix_layers(network)
    for name in grams[0]:
        if name in heads or any(name not in own for own in grams):
            continue
        seen = [own[name] for own in grams]
        if through:
            seen = [layer_grams(e.network, w, _inputs(e), name)[name] for e in experts]
        layer = LayerMatrix(network, name, layers[name])
        matrices = [layer.with_bias(e.weights).T.double() for e in experts]
        merged = regression_mean(matrices, [_scaled(gram, scale) for gram in seen])
        layer.write(merged.T, w)
    return w


def _inputs(expert: Expert) -> Inputs:
    assert expert.inputs is not None, "Gram matrices are measured where there are inputs"
    return expert.inputs


@method(
    "regmean", "activations", "least squares in each Linear and Conv2d layer, the rest averaged"
)
def regmean(context: Context) -> MethodResult:
    """Merge by the Gram matrices of both networks, at the best scale of off-diagonal entries."""
    return _best(context, through=False)


@method("regmean++", "activations", "RegMean on inputs that the layers merged before compute")
def regmean_plus_plus(context: Context) -> MethodResult:
    """Merge layers in order, on inputs computed by those before, at the best scale."""
    return _best(context, through=True)


def _best(context: Context, through: bool) -> MethodResult:
    pair = (context.a, context.b)
    few = [x.sample(INPUTS, context.seed) for x in context.inputs(*pair)]
    experts = [replace(e, inputs=x) for e, x in zip(pair, few, strict=True)]
    grams = [layer_grams(e.network, e.weights, _inputs(e)) for e in experts]
    mean, heads = context.space.middle(), context.prepared.heads.separate_layers
    points = [
        context.settled(regress(experts, grams, mean, scale, through=through, heads=heads))
        for scale in SCALES
    ]
    best, w = context.pick(len(points), points.__getitem__)
    passes = 1 + len(SCALES) * len(grams[0]) * through
    samples = sum(map(len, few)) * passes
    return MethodResult(w, inputs=("a", "b"), samples=samples, chosen={"alpha": SCALES[best]})


def _scaled(gram: Tensor, scale: float) -> Tensor:
    diagonal = gram.diagonal().diag()
    return diagonal + scale * (gram - diagonal)
