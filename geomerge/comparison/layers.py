"""Inputs of a network's matrix layers, recorded by forward hooks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor, nn

from geomerge.data import Inputs
from geomerge.metrics.kernel import is_matrix_layer
from geomerge.networks.network import Network

__all__ = ["matrix_layers", "visit_inputs"]

_BATCH = 250


def matrix_layers(network: Network) -> dict[str, nn.Module]:
    """Return the Linear and Conv2d layers with an unshared weight matrix, by name."""
    layers = network.module.named_modules()
    matrices = {name: layer for name, layer in layers if is_matrix_layer(layer)}
    return {name: layer for name, layer in matrices.items() if f"{name}.weight" in network.slices}


def visit_inputs(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    visit: Callable[[str, Tensor], None],
) -> None:
    """Pass inputs through a network and call a function with the inputs of its matrix layers.

    Args:
        network: Network.
        w: Weights of the network.
        inputs: Inputs of the network, all of which are used.
        visit: Function called with a layer's name and inputs, shape (B, ...), for every batch.
    """
    names = {layer: name for name, layer in matrix_layers(network).items()}

    def show(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        visit(names[layer], arguments[0])

    with ExitStack() as hooks:
        for layer in names:
            hooks.enter_context(layer.register_forward_pre_hook(show))
        for x in inputs.equal_batches(_BATCH):
            network.logits(w, x)
