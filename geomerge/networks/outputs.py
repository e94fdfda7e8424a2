"""Logits in the output of a module: the tensor itself, an attribute or an entry of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from geomerge.errors import CheckpointError

__all__ = ["logits_in"]


def logits_in(output: Any) -> Tensor:  # (B, m)
    """Return the logits in what a module returns.

    They are the tensor itself, the attribute ``logits``, the entry ``"logits"`` of a mapping or its
    only entry, or the first entry of a tuple or list.

    Args:
        output: Output of the module.

    Raises:
        CheckpointError: If it holds no logits in any of these places, or not of shape (B, m).
    """
    found = output
    if not isinstance(found, Tensor):
        named = getattr(output, "logits", None)
        if named is not None:
            found = named
        elif isinstance(output, Mapping):
            only = next(iter(output.values())) if len(output) == 1 else None
            found = output.get("logits", only)
        elif isinstance(output, (tuple, list)) and output:
            found = output[0]
    if not isinstance(found, Tensor) or found.dim() != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise CheckpointError(
            f"expected a network that returns logits of shape (batch, classes), got {shape}; say "
            "where they are with `logits`, a function of the module's output"
        )
    return found
