"""Logits in the output of a module, which is a tensor, an object or a mapping.

A language model has logits at every position of a text. Each real token is a row of the outputs,
like an example; padding is excluded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from geomerge.errors import CheckpointError
from geomerge.networks.batches import Batch, leaves, token_mask

__all__ = ["logits_in", "token_rows"]


def logits_in(output: Any) -> Tensor:  # (B, m) or (B, T, m)
    """Return the logits in a module's output.

    They are the tensor itself, the attribute ``logits``, the entry ``"logits"`` of a mapping or its
    only entry, or the first entry of a tuple or list.

    Args:
        output: Output of the module.

    Raises:
        CheckpointError: If there are no logits in these places, or they have another number of
            axes.
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
    if not isinstance(found, Tensor) or found.dim() not in (2, 3):
        raise _refused(found if isinstance(found, Tensor) else output)
    return found


def token_rows(
    values: Tensor,  # (B, m) or (B, T, m)
    x: Batch,
) -> Tensor:  # (R, m)
    """Return values at all real tokens of a batch, ordered by text.

    Args:
        values: Values for each input, shape (B, m), which are returned unchanged, or for each
            token, shape (B, T, m).
        x: Inputs, whose attention mask is 0 at padding; without a mask all positions are tokens.

    Raises:
        CheckpointError: If values have an axis of positions but inputs are not texts.
    """
    if values.dim() < 3:
        return values
    tokens = [leaf for leaf in leaves(x) if not leaf.is_floating_point() and leaf.dim() == 2]
    if not any(leaf.shape == values.shape[:2] for leaf in tokens):
        raise _refused(values)
    mask = token_mask(x)
    return values.flatten(0, 1) if mask is None else values[mask]


def _refused(found: Any) -> CheckpointError:
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    return CheckpointError(
        "expected a network that returns logits of shape (batch, classes), or (batch, tokens, "
        f"vocabulary) for texts, got {shape}; say where they are with `logits`, a function of the "
        "module's output"
    )
