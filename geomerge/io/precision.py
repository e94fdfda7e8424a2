"""Precision of stored weights: computed in float32, written in the type in which they came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.options import option

__all__ = [
    "DTYPES", "HALVES", "dtype_option", "in_precision", "rounded", "stored_dtype", "with_dtype",
]  # fmt: skip

DTYPES = ("float32", "float16", "bfloat16")
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def dtype_option() -> Any:
    """Declare the option of the type in which networks are written."""
    return option(
        None, "type of the written weights; default that of the networks given, if it is one",
        group="output", choices=DTYPES, recorded="given",
    )  # fmt: skip


def stored_dtype(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the half precision that all floating point tensors have; None where they have not."""
    kinds = {value.dtype for value in tensors.values() if value.is_floating_point()}
    return next((name for name, kind in HALVES.items() if kinds == {kind}), None)


def with_dtype(meta: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """Return a checkpoint's metadata with the type in which its weights are written.

    Args:
        meta: Metadata.
        dtype: Name of the type; None and ``"float32"`` need no entry.
    """
    plain = {name: value for name, value in meta.items() if name != "dtype"}
    return {**plain, "dtype": dtype} if dtype in HALVES else plain


def in_precision(tensors: Mapping[str, Tensor], dtype: Any) -> dict[str, Tensor]:
    """Return tensors as a file of a type holds them; integers stay.

    Args:
        tensors: Tensors by name.
        dtype: Name of the type; anything but a half precision leaves them as they are.

    Raises:
        OptionError: If a number is too large for the type.
    """
    kind = HALVES.get(dtype) if isinstance(dtype, str) else None
    if kind is None:
        return dict(tensors)
    made = {k: v.to(kind) if v.is_floating_point() else v for k, v in tensors.items()}
    for name, value in made.items():
        if not torch.isfinite(value).all() and torch.isfinite(tensors[name]).all():
            raise OptionError(
                f"{name!r} has numbers up to {float(tensors[name].abs().max()):.3g}, and {dtype} "
                f"ends at {torch.finfo(kind).max:.3g}; give `dtype` float32 or bfloat16"
            )
    return made


def rounded(
    w: Tensor,  # (n,)
    dtype: Any,
) -> Tensor:  # (n,)
    """Return weights as they are read again from a file of a type.

    Raises:
        OptionError: If a number is too large for the type.
    """
    return in_precision({"weights": w}, dtype)["weights"].to(w.dtype)
