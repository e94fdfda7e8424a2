"""A network's forward pass -> its products of weights with activations, and its norms.

They are seen where they are computed, not where they are declared: packed projections of
attention, functional layers and modules called twice count like a Linear layer.
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

__all__ = ["Block", "Product", "Products"]


class Block(NamedTuple):
    """Whole rows of a weight matrix, as places in the weight vector.

    Attributes:
        start: First weight.
        stop: First weight after it.
        rows: Outputs of the product.
        bias: Where its biases start, or None.
    """

    start: int
    stop: int
    rows: int
    bias: int | None

    def spans(self) -> list[tuple[int, int]]:
        """Return where the weights and the biases lie."""
        weight = (self.start, self.stop)
        return [weight] if self.bias is None else [weight, (self.bias, self.bias + self.rows)]


@dataclass(frozen=True)
class Product:
    """A block of weights applied to activations.

    Attributes:
        block: The weights.
        out: What came out; an activation in place may not change it.
        axis: Where ``out`` has the block's rows.
        unfold: How a convolution cuts out its patches, or None.
    """

    block: Block
    out: Tensor
    axis: int
    unfold: dict[str, Any] | None

    def inputs(
        self,
        x: Tensor,  # as the layer got it
    ) -> Tensor:  # (R, d_in)
        """Return one row for each input of the matrix, with a 1 for the bias."""
        x = x.detach()
        if self.unfold is not None:
            x = functional.unfold(x, **self.unfold).transpose(1, 2)  # (B, T, d_in)
        x = x.reshape(-1, x.shape[-1])
        return x if self.block.bias is None else torch.cat([x, x.new_ones(len(x), 1)], dim=1)

    def outputs(
        self,
        d: Tensor,  # shaped like out
    ) -> Tensor:  # (R, d_out)
        """Return one row for each output of the matrix."""
        return d.movedim(self.axis, -1).reshape(-1, self.block.rows)


class Products(TorchFunctionMode):
    """While active, hands on every product and norm with weights that lie in a weight vector.

    Args:
        w: The vector, shape (n,), that the module's weights are views of.
        on_product: Gets the product and its input, before anything changes that in place.
        on_norm: Gets the norm.
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
        """Call a function of torch, and hand it on where it is a product or a norm."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        if func in NORMS and (found := norm_call(func, args, kwargs)) is not None:
            norm = self._norm(found)
            if norm is not None:
                normal = found.normalise()  # before anything changes its input in place
                out = func(*args, **kwargs)
                self._on_norm(Normed(norm, out, normal, found))
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
        """See a call that is neither."""

    def span(self, tensor: Tensor) -> tuple[int, int] | None:
        """Return where a tensor lies in the weight vector, None where it does not."""
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

# torch's attention without the check that gives it to the mode again instead of running it: so
# the mode sees the projections inside.
_attention = types.FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**functional.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=functional.multi_head_attention_forward.__defaults__,
)
