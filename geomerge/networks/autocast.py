"""Passes in bfloat16: matrix products in half the bytes, weights and second moments in float32.

PyTorch's autocast rounds the operands of products to bfloat16, which keeps the range of float32 and
eight bits of the significand; activations and their gradients have that type. Weights, stored
gradients with respect to them, second moments and losses stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.options import option

__all__ = [
    "PRECISIONS",
    "check_precision",
    "passes",
    "precision_notes",
    "precision_option",
    "widened",
]

PRECISIONS = ("float32", "bfloat16")
_ROUNDED = (
    "passes in bfloat16: derivatives and targets are rounded to eight bits, weights and accuracies "
    "are in float32"
)
_SLOW = "this processor has no arithmetic in bfloat16, so that passes take longer than in float32"


def precision_option(group: str = "machine") -> Any:
    """Declare the option of the type in which passes with derivatives compute.

    Args:
        group: Heading in the help that it stands under.
    """
    return option(
        "float32", "type in which passes with derivatives, and of targets, compute products",
        group=group, choices=PRECISIONS, recorded="given",
    )  # fmt: skip


def check_precision(precision: str, dtype: torch.dtype, device: torch.device) -> None:
    """Check that a network's passes can be computed in a precision.

    Args:
        precision: One of :data:`PRECISIONS`.
        dtype: Type of the network's weights.
        device: Device of its passes.

    Raises:
        OptionError: If the weights are in float64, or the device has no autocast to bfloat16.
    """
    if precision == "float32":
        return
    if dtype != torch.float32:
        raise OptionError(
            f"`precision` {precision} expected weights in float32, got "
            f"{str(dtype).removeprefix('torch.')}; convert them, or leave `precision` at float32"
        )
    if not torch.amp.is_autocast_available(device.type):
        raise OptionError(
            f"`precision` {precision} expected a device with autocast, such as cpu or cuda, got "
            f"{device.type}; set `device` to one, or leave `precision` at float32"
        )


def precision_notes(precision: str, device: torch.device) -> list[str]:
    """Return sentences on what a precision changes.

    Args:
        precision: One of :data:`PRECISIONS`.
        device: Device of the passes.
    """
    if precision == "float32":
        return []
    return [_ROUNDED] if _computes(device) else [_ROUNDED, _SLOW]


def _computes(device: torch.device) -> bool:
    """Return whether a device has arithmetic in bfloat16, as far as is known."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def passes(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which passes with derivatives compute.

    Args:
        precision: One of :data:`PRECISIONS`.
        device: Device of the passes.
    """
    if precision == "float32":
        return nullcontext()
    # Without autocast's cache of rounded weights, which outlives tensors of torch.func.
    low = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return low if _computes(device) else _without_onednn(low)


@contextmanager
def _without_onednn(passes: AbstractContextManager[Any]) -> Iterator[None]:
    """Compute passes without oneDNN, whose recurrent layers need a processor with bfloat16."""
    enabled, *_ = torch.backends.mkldnn.set_flags(False)
    try:
        with passes:
            yield
    finally:
        torch.backends.mkldnn.set_flags(enabled)


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor of a pass in the type in which it is accumulated: float32 for bfloat16."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
