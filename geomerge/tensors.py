"""Tensors from outside must be plain: with numbers of their own, all finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.errors import CheckpointError

__all__ = ["HOW_TO_SAVE", "check_plain"]

HOW_TO_SAVE = "save it again with torch.save(model.state_dict(), ...) or as safetensors"
_SHARES = 32  # tensors may share storage, as tied layers do, but not without end


def check_plain(tensors: Mapping[Any, Any], path: Path) -> None:
    """Refuse anything among what a file held that is no plain tensor.

    Args:
        tensors: What was read, by name.
        path: Where from, for messages.

    Raises:
        CheckpointError: If something is no tensor with a name, is spread over fewer numbers than
            it claims, or is not finite. Quantised, sparse and complex tensors, and those without
            data, do not come so far: :mod:`geomerge.containers` refuses them.
    """
    total, there = 0, 0
    stored = set()
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path} has a tensor named {str(name)[:60]!r}, expected names as text; "
                f"{HOW_TO_SAVE}"
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds a {type(value).__name__} under {name[:60]!r}, expected only "
                f"tensors; {HOW_TO_SAVE}"
            )
        storage = value.untyped_storage()
        if value.numel() * value.element_size() > _SHARES * storage.nbytes():
            raise CheckpointError(
                f"{name[:60]!r} of {path} claims {value.numel()} numbers and has "
                f"{storage.nbytes() // value.element_size()}; {HOW_TO_SAVE}"
            )
        total += value.numel() * value.element_size()
        if storage.data_ptr() not in stored:
            stored.add(storage.data_ptr())
            there += storage.nbytes()
        if total > _SHARES * there:
            raise CheckpointError(
                f"the tensors of {path} claim {total} bytes and share {there}; {HOW_TO_SAVE}"
            )
        _check_finite(value, name, path)


def _check_finite(value: Tensor, name: str, path: Path) -> None:
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise CheckpointError(
            f"the weights {name[:60]!r} of {path} are not all finite (NaN or infinity); train or "
            "save the network again"
        )
