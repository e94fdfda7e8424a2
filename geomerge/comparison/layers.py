"""Matrix layers of a network: their weights as matrices, their inputs by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from geomerge.data import Inputs
from geomerge.metrics.kernel import is_matrix_layer
from geomerge.networks.network import Network

__all__ = ["LayerMatrix", "matrix_layers", "visit_inputs"]

_BATCH = 250


def matrix_layers(network: Network) -> dict[str, nn.Module]:
    """Return the Linear, Conv2d and Conv1D layers with an unshared weight matrix, by name."""
    layers = network.module.named_modules()
    matrices = {k: layer for k, layer in layers if is_matrix_layer(layer) or _is_conv1d(layer)}
    return {name: layer for name, layer in matrices.items() if f"{name}.weight" in network.slices}


def _is_conv1d(layer: nn.Module) -> bool:
    """Return whether a layer is the Conv1D of GPT-2, a Linear with its weight as (d_in, d_out)."""
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class LayerMatrix:
    """Place of a matrix layer's weight in a weight vector.

    Args:
        network: Network.
        name: Name of the layer.
        layer: The layer, one of :func:`matrix_layers`.
    """

    def __init__(self, network: Network, name: str, layer: nn.Module) -> None:
        self.place = network.slices[f"{name}.weight"]
        self.bias = network.slices.get(f"{name}.bias")
        self._transposed = _is_conv1d(layer)
        self._first = len(layer.get_parameter("weight"))

    def of(
        self,
        w: Tensor,  # (..., n)
    ) -> Tensor:  # (..., d_out, d_in), a view
        """Return the weight in a vector, or in each of several."""
        stored: Tensor = w[..., self.place].unflatten(-1, (self._first, -1))
        return stored.mT if self._transposed else stored

    def with_bias(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (d_out, d_in or d_in + 1)
        """Return the weight with the bias, if there is one, as its last column."""
        if self.bias is None:
            return self.of(w)
        return torch.cat([self.of(w), w[self.bias].unsqueeze(1)], dim=1)

    def write(
        self,
        matrix: Tensor,  # (d_out, d_in or d_in + 1)
        w: Tensor,  # (n,)
    ) -> None:
        """Write a matrix into a vector; the bias where it has one more column."""
        weight = self.of(w)
        weight.copy_(matrix[:, : weight.shape[1]])
        if matrix.shape[1] > weight.shape[1]:
            assert self.bias is not None, "the column is a bias"
            w[self.bias] = matrix[:, -1].to(w)


def visit_inputs(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    visit: Callable[[str, Tensor], None],
    layers: Iterable[str] | None = None,
) -> None:
    """Pass inputs through a network and call a function with the inputs of its layers.

    Args:
        network: Network.
        w: Weights of the network.
        inputs: Inputs of the network, all of which are used.
        visit: Function called with a layer's name and inputs, shape (B, ...), for every batch.
        layers: Names of the layers; None takes the matrix layers.
    """
    chosen = matrix_layers(network) if layers is None else layers
    names = {network.module.get_submodule(name): name for name in chosen}

    def show(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        visit(names[layer], arguments[0])

    with ExitStack() as hooks:
        for layer in names:
            hooks.enter_context(layer.register_forward_pre_hook(show))
        for x in inputs.equal_batches(_BATCH):
            network.logits(w, x)
