"""Per-input derivatives with respect to weights in lookups and other local operations.

If an operation takes weights, or tensors computed from weights alone, the per-input derivatives of
an output phi follow from the gradient d at the operation's result. No other part of the network is
differentiated for each input.
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
from geomerge.networks.autocast import widened

__all__ = [
    "LOCAL",
    "Local",
    "Lookup",
    "batch_axis",
    "out_of_place",
    "rows_squared",
    "used_rows_squared",
]

# Operations that can act on each input separately; two passes find out whether they do.
LOCAL = frozenset({
    "add", "sub", "mul", "div", "true_divide", "rsub", "__radd__", "__rsub__", "__rmul__",
    "__rdiv__", "__rtruediv__", "subtract", "multiply", "divide", "addcmul", "lerp", "where",
    "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "linear", "bilinear", "prelu", "cat",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "layer_norm", "rms_norm", "group_norm", "instance_norm", "scaled_dot_product_attention",
})  # fmt: skip


def out_of_place(func: Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    """Return the name of an operation and its variant that does not modify its operands."""
    name = getattr(func, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
        func = getattr(Tensor, name, func)
    elif name.startswith("__i") and name not in ("__init__", "__int__", "__index__", "__invert__"):
        name = name.replace("__i", "").rstrip("_")
        func = getattr(Tensor, name, func)
    return name, func


def batch_axis(single: Tensor, double: Tensor, *, strict: bool = False) -> tuple[int | None, bool]:
    """Return the batch axis of a tensor, from passes of one input and of the same input twice.

    Args:
        single: Tensor of a pass of one input.
        double: The same tensor of a pass of that input twice.
        strict: Whether to exclude axes of inputs times positions.

    Returns:
        The axis, None for a tensor that does not depend on the inputs; and whether either was
        found. Axes of positions times inputs, in this order, are not supported.
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
    """Return the slice of a tensor that belongs to some inputs, with a separate batch axis."""
    parts: Tensor = t.detach().unflatten(axis, (count, t.shape[axis] // count))
    return parts.narrow(axis, rows.start, rows.stop - rows.start)


@dataclass(frozen=True)
class Lookup:
    """Lookup of rows of a table by an embedding.

    Attributes:
        name: Name of the table.
        out: Output, protected from in-place operations.
        ids: Indices of the rows.
        size: Number of rows of the table.
    """

    name: str
    out: Tensor
    ids: Tensor
    size: int

    def parts(
        self, d: Tensor, axis: int, count: int, rows: slice
    ) -> tuple[Tensor, Tensor]:  # (b, T, D), (b, T)
        """Return gradients and indices of the rows looked up by some inputs."""
        of_each = widened(_inputs(d, axis, count, rows)).movedim(axis, 0).flatten(1, -2)
        return of_each, _inputs(self.ids, axis, count, rows).movedim(axis, 0).flatten(1)

    def derivatives(self, d: Tensor, axis: int, count: int, rows: slice) -> Tensor:  # (b, size * D)
        """Return the derivatives with respect to the table for some inputs.

        Args:
            d: Gradient at ``out``.
            axis: Batch axis of ``out``.
            count: Number of inputs.
            rows: Slice of the inputs.
        """
        of_each, ids = self.parts(d, axis, count, rows)
        table = of_each.new_zeros(len(ids), self.size, of_each.shape[-1])
        index = ids.unsqueeze(-1).expand_as(of_each)
        return table.scatter_add_(1, index, of_each).flatten(1)


def rows_squared(
    parts: Sequence[tuple[Tensor, Tensor]],  # (B, T, D), (B, T)
    size: int,
) -> Tensor:  # (size, D)
    """Sum the gradients of each row of a table within each input, then their squares over inputs.

    Args:
        parts: Gradients and row indices of each lookup.
        size: Number of rows of the table.
    """
    d = torch.cat([of_each for of_each, _ in parts], dim=1)
    ids = torch.cat([numbers for _, numbers in parts], dim=1)
    used, squares = used_rows_squared(d, ids, size)
    return squares.new_zeros(size, d.shape[-1]).index_add_(0, used, squares)


def used_rows_squared(
    d: Tensor,  # (B, T, D)
    ids: Tensor,  # (B, T)
    size: int,
) -> tuple[Tensor, Tensor]:  # (R,), (R, D)
    """Return the rows of a table that each input uses, and the squares of their gradients.

    Args:
        d: Gradients at the looked-up rows.
        ids: Indices of these.
        size: Number of rows of the table.
    """
    inputs = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    used, place = (inputs * size + ids).reshape(-1).unique(return_inverse=True)
    sums = d.new_zeros(len(used), d.shape[-1]).index_add_(0, place, d.flatten(0, 1))
    return used % size, sums.double().square()


@dataclass(frozen=True)
class Local:
    """Operation on activations and weights, or tensors computed from weights alone.

    Attributes:
        key: Name of the operation and the names of the weights of each operand.
        function: Function of the operation.
        flat: Operands and options, flattened.
        form: Tree structure of the operands and options.
        weights: Indices in ``flat`` of tensors computed from weights alone.
        whole: Whether each of these is one named tensor of the weight vector.
        activations: Indices in ``flat`` of activations.
        out: Output, protected from in-place operations.
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
        """Return the result for given operands and options."""
        args, kwargs = tree_unflatten(flat, self.form)
        out: Tensor = self.function(*args, **kwargs)
        return out

    def derivatives(
        self, d: Tensor, axes: Sequence[int | None], count: int, rows: slice
    ) -> list[Tensor]:  # (b, ...) each
        """Return the per-input derivatives with respect to each of ``weights`` for some inputs.

        The operation is differentiated in float32, also where a pass computed it in bfloat16.

        Args:
            d: Gradient at ``out``.
            axes: Batch axis of each of ``activations``, then of ``out``.
            count: Number of inputs.
            rows: Slice of the inputs.
        """
        everything = [widened(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self.flat]
        own = tuple(everything[i].detach() for i in self.weights)
        given = [
            everything[i].detach() if axis is None else _inputs(everything[i], axis, count, rows)
            for i, axis in zip(self.activations, axes, strict=False)
        ]
        wanted = widened(_inputs(d, axes[-1] or 0, count, rows))

        def of_one(pulled: Tensor, *activations: Tensor) -> tuple[Tensor, ...]:
            def run(*weights: Tensor) -> Tensor:
                flat = list(everything)
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
