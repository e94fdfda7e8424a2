"""Linear and Conv2d layers as matrices that act on the inputs at each of their positions.

The gradient of an output by such a layer's weight is a sum over positions t (tokens, pixels) of
delta_t x_t', x_t the layer's input there and delta_t the gradient at its output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["is_matrix_layer", "position_gradients", "position_inputs"]


def is_matrix_layer(layer: nn.Module) -> bool:
    """Return whether a layer is a Linear, or a Conv2d of one group and zero padding by numbers."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def position_inputs(
    layer: nn.Module,
    x: Tensor,  # (B, ..., d_in) or (B, channels, height, width)
    count: int,
) -> Tensor:  # (count, T, d_in), with a column of ones for a bias
    """Return the inputs x_t of ``count`` examples, whose positions may lie in the batch."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str), "matrix layers have numbers as padding"
        x = torch.nn.functional.unfold(
            x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        ).transpose(1, 2)
    x = x.reshape(count, -1, x.shape[-1])
    return x if layer.bias is None else torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)


def position_gradients(
    layer: nn.Module,
    d: Tensor,  # (B, ..., d_out) or (B, d_out, height, width)
    count: int,
) -> Tensor:  # (count, T, d_out)
    """Return the gradients delta_t at the outputs, in the order of :func:`position_inputs`."""
    if isinstance(layer, nn.Conv2d):
        d = d.flatten(2).transpose(1, 2)
    return d.reshape(count, -1, d.shape[-1])
