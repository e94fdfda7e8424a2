"""Derivatives per input with respect to weights that are looked up, scaled, added or mixed in.

Where one operation takes weights, or tensors computed from weights alone, the derivatives of an
output phi for every input follow from the gradient d at its result by that operation alone: no
other part of the network is differentiated input by input.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import TreeSpec, tree_unflatten

from geomerge.metrics.outputs import nearly_equal

__all__ = ["LOCAL", "Local", "Lookup", "batch_axis", "out_of_place", "rows_squared"]

# Operations that treat inputs alone; whether they do along one axis is found by two passes.
LOCAL = frozenset({
    "add", "sub", "mul", "div", "true_divide", "rsub", "__radd__", "__rsub__", "__rmul__",
    "__rdiv__", "__rtruediv__", "subtract", "multiply", "divide", "addcmul", "lerp", "where",
    "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "linear", "bilinear", "prelu", "cat",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "layer_norm", "rms_norm", "group_norm", "instance_norm", "scaled_dot_product_attention",
})  # fmt: skip


def out_of_place(func: Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    """Return the name of an operation and the function that leaves its operands alone."""
    name = getattr(func, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
        func = getattr(Tensor, name, func)
    elif name.startswith("__i") and name not in ("__init__", "__int__", "__index__", "__invert__"):
        name = name.replace("__i", "").rstrip("_")
        func = getattr(Tensor, name, func)
    return name, func


def batch_axis(single: Tensor, double: Tensor, *, strict: bool = False) -> tuple[int | None, bool]:
    """Return the axis along which a tensor of one input becomes that of the same input twice.

    Args:
        single: Tensor of a pass of one input.
        double: The same tensor of a pass of that input twice.
        strict: Whether the axis must hold inputs alone, not inputs times positions.

    Returns:
        The axis, None where the tensor is the same for any inputs, and whether there is one of
        these two answers: an axis of positions times inputs, in this order, is no answer.
    """
    if single.shape == double.shape:
        return None, True
    sizes = list(zip(single.shape, double.shape, strict=False))
    grown = [i for i, (one, two) in enumerate(sizes) if one != two]
    if single.dim() != double.dim() or len(grown) != 1:
        return None, False
    (axis,) = grown
    one, two = sizes[axis]
    if two != 2 * one or (strict and one != 1):
        return None, False
    halves = double.detach().unflatten(axis, (2, one)).unbind(axis)
    same = [
        nearly_equal(half, single.detach(), 1e-3)
        if half.is_floating_point()
        else torch.equal(half, single)
        for half in halves
    ]
    return axis, all(same)


def _inputs(t: Tensor, axis: int, count: int, rows: slice) -> Tensor:
    """Return the part of a tensor of some inputs, which lie along an axis of their own."""
    parts: Tensor = t.detach().unflatten(axis, (count, t.shape[axis] // count))
    return parts.narrow(axis, rows.start, rows.stop - rows.start)


@dataclass(frozen=True)
class Lookup:
    """Rows of a table that an embedding looked up.

    Attributes:
        name: Name of the table.
        out: Output, which no activation in place may change.
        ids: Numbers of the rows.
        size: Number of rows of the table.
    """

    name: str
    out: Tensor
    ids: Tensor
    size: int

    def parts(
        self, d: Tensor, axis: int, count: int, rows: slice
    ) -> tuple[Tensor, Tensor]:  # (b, T, D), (b, T)
        """Return gradients and numbers of the rows that some inputs looked up."""
        of_each = _inputs(d, axis, count, rows).movedim(axis, 0).flatten(1, -2)
        return of_each, _inputs(self.ids, axis, count, rows).movedim(axis, 0).flatten(1)

    def derivatives(self, d: Tensor, axis: int, count: int, rows: slice) -> Tensor:  # (b, size * D)
        """Return the derivatives with respect to the table for some inputs.

        Args:
            d: Gradient at ``out``.
            axis: Axis of the inputs.
            count: Number of inputs.
            rows: Inputs.
        """
        of_each, ids = self.parts(d, axis, count, rows)
        table = of_each.new_zeros(len(ids), self.size, of_each.shape[-1])
        index = ids.unsqueeze(-1).expand_as(of_each)
        return table.scatter_add_(1, index, of_each).flatten(1)


def rows_squared(
    parts: Sequence[tuple[Tensor, Tensor]],  # (B, T, D), (B, T)
    size: int,
) -> Tensor:  # (size, D)
    """Sum the gradients of each row of a table in each input, then their squares over inputs.

    Args:
        parts: Gradients and numbers of the rows of each lookup.
        size: Number of rows of the table.
    """
    d = torch.cat([of_each for of_each, _ in parts], dim=1)
    ids = torch.cat([numbers for _, numbers in parts], dim=1)
    inputs = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    used, place = (inputs * size + ids).reshape(-1).unique(return_inverse=True)
    sums = d.new_zeros(len(used), d.shape[-1]).index_add_(0, place, d.flatten(0, 1))
    squares = sums.double().square()
    return squares.new_zeros(size, d.shape[-1]).index_add_(0, used % size, squares)


@dataclass(frozen=True)
class Local:
    """Operation on activations that takes weights, or tensors computed from weights alone.

    Attributes:
        key: Name of the operation and the names of the weights of each operand.
        function: The operation.
        flat: Its operands and options.
        form: Their form.
        weights: Places in ``flat`` of tensors computed from weights alone.
        whole: Whether each of them is one named tensor as it stands in the weight vector.
        activations: Places of activations.
        out: Output, which no activation in place may change.
    """

    key: tuple[Any, ...]
    function: Callable[..., Any]
    flat: list[Any]
    form: TreeSpec
    weights: list[int]
    whole: list[bool]
    activations: list[int]
    out: Tensor

    def run(self, flat: list[Any]) -> Tensor:
        """Return the result for other operands and options."""
        args, kwargs = tree_unflatten(flat, self.form)
        out: Tensor = self.function(*args, **kwargs)
        return out

    def derivatives(
        self, d: Tensor, axes: Sequence[int | None], count: int, rows: slice
    ) -> list[Tensor]:  # (b, ...) each
        """Return the derivatives with respect to each of ``weights`` for some inputs.

        Args:
            d: Gradient at ``out``.
            axes: Axis of the inputs in each of ``activations``, then in ``out``.
            count: Number of inputs.
            rows: Inputs.
        """
        own = tuple(self.flat[i].detach() for i in self.weights)
        given = [
            self.flat[i].detach() if axis is None else _inputs(self.flat[i], axis, count, rows)
            for i, axis in zip(self.activations, axes, strict=False)
        ]
        wanted = _inputs(d, axes[-1] or 0, count, rows)

        def of_one(pulled: Tensor, *activations: Tensor) -> tuple[Tensor, ...]:
            def run(*weights: Tensor) -> Tensor:
                flat = list(self.flat)
                for places, tensors in (
                    (self.weights, weights),
                    (self.activations, activations),
                ):
                    for i, tensor in zip(places, tensors, strict=True):
                        flat[i] = tensor
                return self.run(flat)

            pull: Callable[[Tensor], tuple[Tensor, ...]] = vjp(run, *own)[1]
            return pull(pulled)

        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.filterwarnings("ignore", "There is a performance drop")
            found = vmap(of_one, in_dims=(axes[-1], *axes[:-1]))(wanted, *given)
        return list(found)
