"""Passes that are repeated with fewer inputs where memory does not suffice."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from geomerge.errors import OptionError, first_line, warn_assumption
from geomerge.io import paged

__all__ = ["Room"]

T = TypeVar("T")

# What allocators of the CPU say, whose errors have no type of their own.
_SAID = ("defaultcpuallocator", "not enough memory", "can't allocate memory")


class Room:
    """Largest number of inputs of a pass for which memory had room.

    Args:
        module: Module that is passed.

    Attributes:
        most: The number; None as long as there was room for every pass.

    Example:
        >>> import warnings
        >>> from torch import nn
        >>> from geomerge.networks.room import Room
        >>> def attempt(most):
        ...     if most > 3:
        ...         raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        ...     return most
        >>> room = Room(nn.Identity().eval())
        >>> with warnings.catch_warnings(action="ignore"):
        ...     room.passed(8, attempt)
        2
        >>> room.most
        2
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.most: int | None = None

    def passed(
        self, count: int, attempt: Callable[[int], T], tried: Callable[[], int] | None = None
    ) -> T:
        """Return what passes compute, halved and repeated as often as memory does not suffice.

        A warning states the first number and the last one, which is the most in later passes too.

        Args:
            count: Number of inputs per pass that is wanted.
            attempt: Function that computes it by passes of at most as many inputs as it is given,
                from the beginning in each call.
            tried: Function that returns the largest pass of the last attempt, where that may be
                smaller than the limit.

        Raises:
            OptionError: If there is no room for one input, or the module is in training mode, so
                that smaller passes would be another function.
        """
        most = max(1, count if self.most is None else min(count, self.most))
        first: int | None = None  # pass that failed
        while True:
            try:
                found = attempt(most)
            except RuntimeError as error:
                if not _of_memory(error):
                    raise
                said = _said(error)
            else:
                break
            # Outside of the block, where the error no longer holds the activations.
            _empty_caches()
            if tried is not None:
                most = max(1, min(most, tried()))
            if first is None:
                first = most
            if most == 1:
                raise OptionError(
                    f"expected room for a pass of one input, got {said}; end other programs, or "
                    "compute on a device with more memory"
                )
            if any(layer.training for layer in self._module.modules()):
                raise OptionError(
                    f"expected room for a pass of {most} inputs, whose BatchNorm statistics are "
                    f"those of all of them, got {said}; keep the running ones with `bn` 'keep', or "
                    "compute on a device with more memory"
                )
            most //= 2
            self.most = most
        if first is not None:
            warn_assumption(
                f"memory did not suffice for a pass of {first} inputs: it was repeated with {most} "
                "at a time, which is the most from here on"
            )
        return found


def _of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that memory did not suffice."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(said in text for said in _SAID)


def _said(error: RuntimeError) -> str:
    """Return the number of bytes that an error names, or its first sentence."""
    wanted = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return f"none for {wanted[1]}" if wanted else repr(first_line(error))


def _empty_caches() -> None:
    """Give back what allocators keep for reuse."""
    paged.trim()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
