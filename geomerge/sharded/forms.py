"""Forms of the Kronecker metric by the types of modules, found before their weights are sharded.

The tracer of a metric in one process follows views of one weight vector, which shards are not.
Modules are therefore known by their types: products have factors, norms and lookups a diagonal. All
other weights have no form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from geomerge.metrics.kronecker.products import Block, ProductCall, product_call

__all__ = ["Form", "LookupForm", "NormForm", "ProductForm", "form_of"]


@dataclass(frozen=True)
class Form:
    """Use of a module's weights.

    Attributes:
        path: Dotted name of the module.
        names: Names of its parameters, the weight first.
    """

    path: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ProductForm(Form):
    """Product of a weight matrix with activations.

    Attributes:
        weight: The weight, without memory.
        bias: The bias, without memory, or None.
        convolution: Stride, padding and dilation, or None.
        transposed: Whether the weight is stored as (d_in, d_out).
    """

    weight: Tensor
    bias: Tensor | None
    convolution: tuple[object, ...] | None = None
    transposed: bool = False

    def call(self, x: Tensor) -> ProductCall:
        """Return the product with some activations, shape (..., d_in) or (B, C, ...)."""
        if self.transposed:
            return ProductCall(x, self.weight, self.bias, -1, transposed=True)
        if self.convolution is None:
            found = product_call(functional.linear, (x, self.weight, self.bias), {})
        else:
            given = (x, self.weight, self.bias, *self.convolution)
            found = product_call(torch.conv2d, given, {})
        assert found is not None, "forms are found for such calls alone"
        return found

    @property
    def block(self) -> Block:
        """The block of the weight, as if the weight were alone."""
        size = self.weight.numel()
        rows = self.weight.shape[1 if self.transposed else 0]
        return Block(0, size, rows, None if self.bias is None else size, self.transposed)


@dataclass(frozen=True)
class NormForm(Form):
    """Scale and shift of a LayerNorm.

    Attributes:
        shape: Shape of the normalised axes.
        eps: Number added to the variance.
    """

    shape: tuple[int, ...]
    eps: float


@dataclass(frozen=True)
class LookupForm(Form):
    """Lookup of rows of a table.

    Attributes:
        size: Number of rows.
    """

    size: int


def form_of(path: str, module: nn.Module) -> Form | None:
    """Return the form of a module's own weights; None if it is not known.

    Args:
        path: Dotted name of the module.
        module: Module with whole weights, which need no memory.
    """
    own = dict(module.named_parameters(recurse=False))
    names = tuple(f"{path}.{name}" for name in own)
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or own.keys() - {"weight", "bias"}:
        return None
    kind = type(module)
    if isinstance(module, nn.LayerNorm) and kind is nn.LayerNorm:
        return NormForm(path, names, module.normalized_shape, module.eps)
    if isinstance(module, nn.Embedding) and kind is nn.Embedding:
        plain = module.max_norm is None and not module.scale_grad_by_freq
        return LookupForm(path, names, len(weight)) if plain else None
    product = (_without_memory(weight), None if bias is None else _without_memory(bias))
    if kind is nn.Linear:
        return ProductForm(path, names, *product)
    if kind.__name__ == "Conv1D" and weight.dim() == 2:  # a linear layer of transformers
        return ProductForm(path, names, *product, transposed=True)
    if isinstance(module, nn.Conv2d) and kind is nn.Conv2d and _plain(module):
        how = (module.stride, module.padding, module.dilation)
        return ProductForm(path, names, *product, convolution=how)
    return None


def _plain(module: nn.Conv2d) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros"


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")
