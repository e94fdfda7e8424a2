"""Tracer of a forward pass: products of weights with activations, and normalisations.

Products are found where they are computed, not where they are declared, so that packed projections
of attention, functional layers and modules called twice are treated like a Linear layer.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from geomerge.metrics.kronecker.norms import NORMS, Norm, NormCall, Normed, norm_call

__all__ = ["Block", "Product", "ProductTracer"]


class Block(NamedTuple):
    """Complete rows of a weight matrix, as places in the weight vector.

    Attributes:
        start: Place of the first weight.
        stop: Place after the last weight.
        rows: Number of rows, the outputs of the product.
        bias: Place of the first bias, or None.
    """

    start: int
    stop: int
    rows: int
    bias: int | None

    def spans(self) -> list[tuple[int, int]]:
        """Return the places of the weights and of the biases."""
        weight = (self.start, self.stop)
        return [weight] if self.bias is None else [weight, (self.bias, self.bias + self.rows)]


@dataclass(frozen=True)
class Product:
    """Block of weights applied to activations.

    Attributes:
        block: Places of the weights.
        out: Output, which no activation in place may change.
        axis: Axis of the block's rows in ``out``.
        unfold: Arguments of ``unfold`` for the patches of a convolution, or None.
    """

    block: Block
    out: Tensor
    axis: int
    unfold: dict[str, Any] | None

    def inputs(
        self,
        x: Tensor,  # input of the layer, in its shape
    ) -> Tensor:  # (R, d_in)
        """Return the vectors that the matrix is applied to as rows, with a 1 for the bias."""
        x = x.detach()
        if self.unfold is not None:
            x = functional.unfold(x, **self.unfold).transpose(1, 2)  # (B, T, d_in)
        x = x.reshape(-1, x.shape[-1])
        return x if self.block.bias is None else torch.cat([x, x.new_ones(len(x), 1)], dim=1)

    def outputs(
        self,
        d: Tensor,  # shaped like out
    ) -> Tensor:  # (R, d_out)
        """Return the gradients at the outputs of the matrix as rows."""
        return d.movedim(self.axis, -1).reshape(-1, self.block.rows)


class ProductTracer(TorchFunctionMode):
    """Function mode that reports all products and norms whose weights lie in a weight vector.

    Args:
        w: Weight vector, shape (n,), of which the module's weights are views.
        on_product: Function of each product and its input, called before the input can change.
        on_norm: Function of each norm.
    """

    def __init__(
        self,
        w: Tensor,
        on_product: Callable[[Product, Tensor], None],
        on_norm: Callable[[Normed], None],
    ) -> None:
        super().__init__()
        self._storage = w.untyped_storage().data_ptr()
        self._first = int(w.storage_offset())
        self._on_product = on_product
        self._on_norm = on_norm

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch and report it if it is a product or a norm."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        if func in NORMS and (called := norm_call(func, args, kwargs)) is not None:
            norm = self._norm(called)
            if norm is not None:
                normal = called.normalise()  # before its input can change in place
                out = func(*args, **kwargs)
                self._on_norm(Normed(norm, out, normal, called))
                return out.clone()
        call = _CALLS[func](*args, **kwargs) if func in _CALLS else None
        block = None if call is None else self._block(call.weight, call.bias)
        out = func(*args, **kwargs)
        if call is None or block is None:
            self.other(func, args, kwargs, out)
            return out
        self._on_product(Product(block, out, call.axis, call.unfold), call.x)
        return out.clone()

    def other(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        """Report any other call; does nothing unless overridden."""

    def span(self, tensor: Tensor) -> tuple[int, int] | None:
        """Return the places of a tensor in the weight vector, or None if it is not part of it."""
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            return None
        if tensor.untyped_storage().data_ptr() != self._storage:
            return None
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        start = int(tensor.storage_offset()) - self._first
        return start, start + 1 + int(sum((size - 1) * step for size, step in steps))

    def _block(self, weight: Tensor, bias: Tensor | None) -> Block | None:
        place = self.span(weight)
        if place is None or not weight.is_contiguous():
            return None
        if bias is None:
            return Block(*place, len(weight), None)
        added = self.span(bias)
        return None if added is None else Block(*place, len(weight), added[0])

    def _norm(self, call: NormCall) -> Norm | None:
        places = [None if tensor is None else self.span(tensor) for tensor in call.tensors]
        whole = all(tensor is None or tensor.is_contiguous() for tensor in call.tensors)
        return Norm(*places) if whole and any(places) else None


class _Call(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    axis: int
    unfold: dict[str, Any] | None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Call | None:
    return _Call(input, weight, bias, -1, None) if weight.dim() == 2 else None


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Call | None:
    if groups != 1 or input.dim() != 4 or isinstance(padding, str):
        return None
    patches = {"stride": stride, "padding": padding, "dilation": dilation}
    return _Call(input, weight, bias, 1, {"kernel_size": tuple(weight.shape[2:]), **patches})


_CALLS: dict[Callable[..., Any], Callable[..., _Call | None]] = {
    functional.linear: _linear,
    functional.conv2d: _conv2d,
}

# Attention of torch without the check that passes the call back to the mode instead of running it,
# so that the mode sees the projections inside.
_attention = types.FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**functional.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=functional.multi_head_attention_forward.__defaults__,
)
