"""Batches of inputs: one tensor, a tuple of tensors, or a dictionary of tensors.

The first dimension of every tensor is that of the examples. A tuple is passed to a module as
positional arguments, a dictionary as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "MASK",
    "Batch",
    "Shape",
    "are_images",
    "arguments",
    "as_batch",
    "batch_size",
    "cast_floats",
    "concat",
    "drawn_like",
    "interleave",
    "is_plain",
    "leaves",
    "map_leaves",
    "pass_to",
    "rows",
    "shape_of",
    "single",
    "split",
    "take",
    "text_length",
    "to_device",
    "token_mask",
    "trimmed",
]

Batch: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
# Shape of one example: the shape of one tensor, a tuple of shapes, or pairs of name and shape for a
# dictionary.
Shape: TypeAlias = tuple[Any, ...]
MASK = "attention_mask"  # entry of a dictionary of tokens; 0 at padding


def as_batch(value: Any) -> Batch | None:
    """Convert tensors, arrays, sequences or mappings of them to a batch; None for other values."""
    if isinstance(value, Mapping):
        named = {name: _as_tensor(entry) for name, entry in value.items()}
        whole = {name: entry for name, entry in named.items() if entry is not None}
        return whole if whole and len(whole) == len(named) else None
    if isinstance(value, (tuple, list)):
        parts = [_as_tensor(entry) for entry in value]
        found = tuple(part for part in parts if part is not None)
        return found if found and len(found) == len(parts) else None
    return _as_tensor(value)


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value) if hasattr(value, "__array__") else None


def leaves(x: Batch) -> list[Tensor]:
    """Return the tensors of a batch, in order."""
    if isinstance(x, Tensor):
        return [x]
    return list(x.values()) if isinstance(x, dict) else list(x)


def map_leaves(function: Callable[[Tensor], Tensor], x: Batch) -> Batch:
    """Return a batch of the same structure with a function applied to each tensor."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, dict):
        return {name: function(value) for name, value in x.items()}
    return tuple(function(value) for value in x)


def batch_size(x: Batch) -> int:
    """Return the number of examples in a batch."""
    return len(leaves(x)[0])


def rows(
    tensor: Tensor,  # (N, ...)
    index: Tensor | slice | int,
) -> Tensor:  # (B, ...)
    """Return some rows of a tensor; of pixels ten times as fast as by indexing.

    Args:
        tensor: Tensor.
        index: Places of the rows from the start, integers on any device; a mask; a slice; or the
            place of one, which is returned without the first dimension.
    """
    if not isinstance(index, Tensor):
        return tensor[index]
    if index.dtype != torch.long or index.device != tensor.device:
        return tensor[index]
    # Only indexing keeps other memory formats.
    return tensor.index_select(0, index) if tensor.is_contiguous() else tensor[index]


def take(x: Batch, index: Tensor | slice | int) -> Batch:
    """Return some examples of a batch, or one without the first dimension."""
    return map_leaves(lambda leaf: rows(leaf, index), x)


def single(x: Batch) -> Batch:
    """Return one example as a batch of one."""
    return map_leaves(lambda leaf: leaf.unsqueeze(0), x)


def split(x: Batch, size: int) -> list[Batch]:
    """Split a batch into parts of at most ``size`` examples."""
    if isinstance(x, Tensor):
        return list(x.split(size))
    count = batch_size(x)
    return [take(x, slice(start, start + size)) for start in range(0, count, size)]


def concat(parts: Sequence[Batch]) -> Batch:
    """Concatenate batches of one structure; texts are padded to one length."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    if isinstance(first, dict):
        named = [part for part in parts if isinstance(part, dict)]
        if MASK in first:  # texts of several lengths
            most = max(part[MASK].shape[1] for part in named)
            named = [_padded(part, most) for part in named]
        return {name: torch.cat([part[name] for part in named]) for name in first}
    rows = [leaves(part) for part in parts]
    return tuple(torch.cat(list(column)) for column in zip(*rows, strict=True))


def _padded(x: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    missing = length - x[MASK].shape[1]
    return {name: functional.pad(value, (0, missing)) for name, value in x.items()}


def token_mask(x: Batch) -> Tensor | None:  # (B, T), bool
    """Return the mask of real tokens of a batch of texts; None without an attention mask."""
    mask = x.get(MASK) if isinstance(x, dict) else None
    return mask.bool() if mask is not None and mask.dim() == 2 else None


def trimmed(x: Batch) -> Batch:
    """Return a batch of texts without columns of padding."""
    mask = token_mask(x)
    if mask is None or not isinstance(x, dict):
        return x
    used = mask.any(dim=0).nonzero()
    length = int(used[-1]) + 1 if len(used) else 1
    if length == mask.shape[1]:
        return x
    return {k: v[:, :length] if v.shape == mask.shape else v for k, v in x.items()}


def interleave(parts: Sequence[Batch]) -> Batch:
    """Return batches of one structure and size as one batch with alternating examples."""
    count = batch_size(parts[0])
    order = torch.arange(len(parts) * count).view(len(parts), count).T.reshape(-1)
    return take(concat(parts), order)


def cast_floats(x: Batch, like: Tensor) -> Batch:
    """Return a batch on another tensor's device, with floating tensors in its dtype."""

    def cast(leaf: Tensor) -> Tensor:
        return leaf.to(like) if leaf.is_floating_point() else leaf.to(like.device)

    return map_leaves(cast, x)


def to_device(x: Batch, device: torch.device | str) -> Batch:
    """Return a batch on a device."""
    return map_leaves(lambda leaf: leaf.to(device), x)


def drawn_like(x: Batch, generator: torch.Generator) -> Batch:
    """Return a batch of the same structure with normally distributed floating tensors."""

    def draw(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator).to(leaf)

    return map_leaves(draw, x)


def shape_of(x: Batch) -> Shape:
    """Return the shape of one example."""
    if isinstance(x, Tensor):
        return tuple(x.shape[1:])
    if isinstance(x, dict):
        return tuple((name, tuple(value.shape[1:])) for name, value in x.items())
    return tuple(tuple(value.shape[1:]) for value in x)


def is_plain(shape: Shape) -> bool:
    """Return whether a shape is that of one tensor per example."""
    return all(isinstance(size, int) for size in shape)


def are_images(shape: Shape) -> bool:
    """Return whether a shape is that of one image per example, (channels, height, width)."""
    return is_plain(shape) and len(shape) == 3


def text_length(shape: Shape) -> int:
    """Return the number of tokens of a text, with its padding; zero of other inputs."""
    sizes = [entry[1] for entry in shape if isinstance(entry, tuple) and entry[:1] == (MASK,)]
    return sizes[0][0] if sizes and len(sizes[0]) == 1 else 0


def pass_to(module: nn.Module | Callable[..., Any], x: Batch) -> Any:
    """Call a module with a batch and return its output."""
    args, kwargs = arguments(x)
    return module(*args, **kwargs)


def arguments(x: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return a batch as positional and keyword arguments of a module."""
    if isinstance(x, dict):
        return (), x
    return (x,) if isinstance(x, Tensor) else x, {}
