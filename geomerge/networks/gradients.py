"""Gradients with respect to a module's parameters, written into a preallocated vector.

Autograd allocates a new tensor for each gradient in every pass. From 32 MiB on the C library
requests its memory from the system each time, which costs more than computing it. Linear layers
with large weights therefore write their gradients directly into the vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from geomerge.networks.autocast import widened

__all__ = ["gradients_into"]

LARGE = 2**22  # number of weights of a large matrix


def gradients_into(
    out: Tensor,  # (n,)
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
) -> Tensor:  # ()
    """Write the gradient of a scalar with respect to parameters into a vector.

    Args:
        out: Vector of the gradient, shape (n,), overwritten.
        parameters: Tensors with n elements in total, which require gradients.
        loss: Function that computes the scalar. Gradients of unused parameters are zero.
    """
    sizes = [p.numel() for p in parameters]
    rooms = [t.view_as(p) for p, t in zip(parameters, out.split(sizes), strict=True)]
    pairs = list(zip(parameters, rooms, strict=True))
    large = _LargeLinear({id(p): t for p, t in pairs if p.dim() == 2 and p.numel() >= LARGE})
    with large if large.rooms else nullcontext():
        value = loss()
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    for (parameter, room), part in zip(pairs, found, strict=True):
        if id(parameter) in large.written:
            if part is not None:  # from uses outside of linear layers
                room += part
        elif part is None:
            room.zero_()
        else:
            room.copy_(part)
    return value


class _LargeLinear(TorchFunctionMode):
    """Function mode in which linear layers with given weights write the gradients of these.

    Args:
        rooms: Tensors for the gradients, by ``id`` of the weight.

    Attributes:
        written: ``id`` of each weight whose gradient was written.
    """

    def __init__(self, rooms: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.rooms = rooms
        self.written: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        if id(weight) not in self.rooms:
            return functional.linear(input, weight, bias)
        return _Linear.apply(input, weight, bias, self)

    def add(
        self,
        weight: int,
        d: Tensor,  # (R, d_out)
        x: Tensor,  # (R, d_in)
    ) -> None:
        """Add d'x to the gradient of a weight."""
        room, again = self.rooms[weight], weight in self.written
        self.written.add(weight)
        if d.dtype != room.dtype:  # passes in bfloat16, whose products have its type
            (room.add_ if again else room.copy_)(d.T @ x)
        elif again:
            room.addmm_(d.T, x)
        else:
            torch.mm(d.T, x, out=room)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., d_in)
        weight: Tensor,  # (d_out, d_in)
        bias: Tensor | None,  # (d_out,)
        large: _LargeLinear,
    ) -> Tensor:  # (..., d_out)
        ctx.weight, ctx.large, ctx.given = id(weight), large, x.dtype
        if torch.is_autocast_enabled(x.device.type):  # the backward pass runs outside of it
            low = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(low), weight.to(low)
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        d: Tensor,  # (..., d_out)
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = d.reshape(-1, d.shape[-1])
        ctx.large.add(ctx.weight, rows, x.reshape(-1, x.shape[-1]))
        by_x = (d @ weight).to(ctx.given) if ctx.needs_input_grad[0] else None
        by_bias = widened(rows).sum(dim=0) if ctx.needs_input_grad[2] else None
        return by_x, None, by_bias, None
