"""Products of weight matrices with activations in calls of PyTorch functions.

A convolution is a product with patches of its input, a transposed convolution one that yields
patches of its output. Each group of a grouped convolution is a separate matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PRODUCTS", "Block", "Patches", "Product", "ProductCall", "product_call", "spread"]

Given: TypeAlias = dict[str, Any]  # arguments by name

_PER_COLUMN = 8  # rows of a batch used per column; more hardly change the moments
_FEWEST = 4096
_GROUPS = 64  # groups with factors; with more, or with one output each, the diagonal is used


class Block(NamedTuple):
    """Weight matrix, or complete rows of one, as places in the weight vector.

    Attributes:
        start: Place of the first weight.
        stop: Place after the last weight.
        rows: Number of outputs of the product.
        bias: Place of the first bias, or None.
        transposed: Whether the weights of one input, rather than of one output, are contiguous.
    """

    start: int
    stop: int
    rows: int
    bias: int | None
    transposed: bool = False

    def spans(self) -> list[tuple[int, int]]:
        """Return the places of the weights and of the biases."""
        weight = (self.start, self.stop)
        return [weight] if self.bias is None else [weight, (self.bias, self.bias + self.rows)]

    @property
    def width(self) -> int:
        """Number of inputs of the product, including one for the bias."""
        return (self.stop - self.start) // self.rows + (self.bias is not None)


@dataclass(frozen=True)
class Patches:
    """Windows (patches) of a convolution in any number of dimensions.

    Attributes:
        kernel: Size of a window along each dimension.
        stride: Distance of windows along each dimension.
        padding: Numbers of zeros before and after, for each dimension.
        dilation: Distance of elements in a window along each dimension.
        most: Largest number of windows along each dimension, or None.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    most: tuple[int, ...] | None = None

    def of(
        self,
        x: Tensor,  # (B, C, ...)
    ) -> Tensor:  # (B, ..., C, kernel), a view unless there is padding
        """Return the windows around all positions."""
        if any(any(pair) for pair in self.padding):
            x = functional.pad(x, [n for pair in reversed(self.padding) for n in pair])
        count = len(self.kernel)
        for i, (size, step, apart) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True)
        ):
            x = x.unfold(2 + i, (size - 1) * apart + 1, step)[..., ::apart]
        if self.most is not None:
            for i, most in enumerate(self.most):
                x = x.narrow(2 + i, 0, most)
        return x.movedim(1, 1 + count)


def spread(count: int, width: int, device: torch.device) -> tuple[Tensor | None, float]:
    """Return indices of the rows to use and the weight of each.

    If there are many more rows than columns, as for patches of a convolution, an evenly spaced
    subset replaces them.

    Args:
        count: Number of rows.
        width: Number of columns.
        device: Device of the rows.

    Returns:
        Indices, None for all rows; and the number of rows over that of the used ones.
    """
    most = max(_FEWEST, _PER_COLUMN * width)
    if count <= most:
        return None, 1.0
    return torch.linspace(0, count - 1, most, device=device).long(), count / most


def _rows(t: Tensor, lead: int, width: int) -> tuple[Tensor, float]:  # (R, width)
    """Return the used rows of a tensor with ``lead`` axes of positions, and their weight."""
    shape = t.shape[:lead]
    index, share = spread(shape.numel(), width, t.device)
    if index is None:
        return t.reshape(shape.numel(), -1), share
    places = []
    for size in reversed(shape):
        places.append(index % size)
        index = index // size
    return t[tuple(reversed(places))].flatten(1), share


@dataclass(frozen=True)
class ProductCall:
    """Deferred product of a weight matrix with activations.

    Attributes:
        x: Activations, the inputs of the product.
        weight: The weight.
        bias: Bias, or None.
        axis: Axis of the outputs in the result.
        groups: Number of blocks of rows with separate inputs.
        transposed: Whether the first axis of the weight belongs to inputs.
        at_inputs: Windows of the activations, or None.
        at_outputs: Windows of the result, or None.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    axis: int
    groups: int = 1
    transposed: bool = False
    at_inputs: Patches | None = None
    at_outputs: Patches | None = None

    def blocks(self, start: int, bias: int | None) -> list[Block]:
        """Return the blocks of a weight, one for each group.

        Args:
            start: Place of the weight in the weight vector.
            bias: Place of the bias, or None.
        """
        size = self.weight.numel() // self.groups
        first = len(self.weight) // self.groups
        rows = size // first if self.transposed else first
        return [
            Block(
                start + k * size,
                start + (k + 1) * size,
                rows,
                None if bias is None else bias + k * rows,
                self.transposed,
            )
            for k in range(self.groups)
        ]

    @property
    def in_blocks(self) -> bool:
        """Whether to use Kronecker factors per group: few groups, with several outputs each."""
        return self.groups == 1 or (
            self.groups <= _GROUPS and self.weight.numel() // self.groups > self.weight[0].numel()
        )


@dataclass(frozen=True)
class Product:
    """Application of blocks of weights to activations.

    Attributes:
        blocks: Places of the weights, one block for each group.
        out: Output, protected from in-place operations.
        call: Call of the function.
    """

    blocks: list[Block]
    out: Tensor
    call: ProductCall = field(repr=False)

    @property
    def count(self) -> int:
        """Number of rows that each block is applied to."""
        call = self.call
        if call.at_outputs is None:
            return self.out.numel() // self.out.shape[call.axis]
        return call.x.numel() // call.x.shape[1]

    def inputs(self, k: int) -> tuple[Tensor, float]:  # (R, d_in)
        """Return the input vectors of a block as rows, with a 1 for the bias.

        Args:
            k: Number of the block.

        Returns:
            The rows, or an evenly spaced subset of many, and the weight of each.
        """
        call, block = self.call, self.blocks[k]
        x = call.x.detach()
        lead = x.dim() - 1
        if call.at_inputs is not None:
            own = x.shape[1] // call.groups
            x = call.at_inputs.of(x.narrow(1, k * own, own))
        elif call.at_outputs is not None:
            own = x.shape[1] // call.groups
            x = x.narrow(1, k * own, own).movedim(1, -1)
        rows, share = _rows(x, lead, block.width)
        if block.bias is not None:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return rows, share

    def outputs(
        self,
        d: Tensor,  # shaped like out
        k: int,
    ) -> tuple[Tensor, float]:  # (R, d_out)
        """Return the gradients at the outputs of a block as rows, and the weight of each.

        Args:
            d: Gradient at ``out``.
            k: Number of the block.
        """
        call, block = self.call, self.blocks[k]
        lead = d.dim() - 1
        own = d.shape[call.axis] // call.groups
        d = d.narrow(call.axis, k * own, own)
        d = d.movedim(call.axis, -1) if call.at_outputs is None else call.at_outputs.of(d)
        return _rows(d, lead, block.rows)


def product_call(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ProductCall | None:
    """Return the product computed by a function of ``PRODUCTS``; None for other forms of it.

    Args:
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    names, make = PRODUCTS[func]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > len(names) or given.keys() - set(names):  # another form, such as with out=
        return None
    return make(given)


def _linear(given: Given) -> ProductCall | None:
    weight = given["weight"]
    if weight.dim() != 2:
        return None
    return ProductCall(given["input"], weight, given.get("bias"), -1)


def _matmul(given: Given) -> ProductCall | None:
    x, weight = given["input"], given.get("other", given.get("mat2"))
    if weight is None or weight.dim() != 2 or x.dim() < 2:
        return None
    if weight.is_contiguous():
        return ProductCall(x, weight, None, -1, transposed=True)
    return ProductCall(x, weight.T, None, -1)


def _addmm(given: Given) -> ProductCall | None:
    bias = given["input"]
    plain = _matmul({"input": given["mat1"], "mat2": given["mat2"]})
    if plain is None or bias.dim() != 1 or len(bias) != given["mat2"].shape[1]:
        return None
    return replace(plain, bias=bias)


def _convolution(given: Given) -> ProductCall | None:
    x, weight = given["input"], given["weight"]
    count = weight.dim() - 2
    if x.dim() != weight.dim():
        return None
    kernel, apart = tuple(weight.shape[2:]), _each(given.get("dilation", 1), count)
    padding = given.get("padding", 0)
    if padding == "same":
        sizes = [d * (k - 1) for d, k in zip(apart, kernel, strict=True)]
        around = tuple((n // 2, n - n // 2) for n in sizes)
    else:
        around = tuple((n, n) for n in _each(0 if padding == "valid" else padding, count))
    patches = Patches(kernel, _each(given.get("stride", 1), count), around, apart)
    groups = given.get("groups", 1)
    return ProductCall(x, weight, given.get("bias"), 1, groups, at_inputs=patches)


def _transposed(given: Given) -> ProductCall | None:
    x, weight = given["input"], given["weight"]
    count = weight.dim() - 2
    if x.dim() != weight.dim():
        return None
    patches = Patches(
        tuple(weight.shape[2:]),
        _each(given.get("stride", 1), count),
        tuple((n, n) for n in _each(given.get("padding", 0), count)),
        _each(given.get("dilation", 1), count),
        tuple(x.shape[2:]),
    )
    groups = given.get("groups", 1)
    return ProductCall(x, weight, given.get("bias"), 1, groups, transposed=True, at_outputs=patches)


def _each(value: Any, count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip

# Argument names of each function, and the function that describes its product.
PRODUCTS: dict[
    Callable[..., Any], tuple[tuple[str, ...], Callable[[Given], ProductCall | None]]
] = {
    functional.linear: (("input", "weight", "bias"), _linear),
    torch.addmm: (("input", "mat1", "mat2"), _addmm),
    **dict.fromkeys((torch.matmul, Tensor.matmul), (("input", "other"), _matmul)),
    **dict.fromkeys((torch.mm, Tensor.mm), (("input", "mat2"), _matmul)),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), (_CONVOLUTION, _convolution)),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        (_TRANSPOSED, _transposed),
    ),
}
