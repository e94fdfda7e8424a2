"""Per-input derivatives with respect to the tensors of normalisation layers.

In y = scale (x - mean) / sqrt(var + eps) + shift all derivatives of an output phi follow from the
gradient d at y and the normalised activations, without a backward pass for each tensor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geomerge.networks.autocast import widened

__all__ = ["NORMS", "Norm", "NormCall", "Normed", "norm_call"]

Span = tuple[int, int]

NORMS = frozenset({
    functional.batch_norm,
    functional.instance_norm,
    functional.group_norm,
    functional.layer_norm,
    functional.rms_norm,
})  # fmt: skip


class Norm(NamedTuple):
    """Places of a norm's tensors in the weight vector; None for missing tensors.

    Attributes:
        scale: First place of the scale, and the place after its last.
        shift: Places of the shift.
        mean: Places of the running mean, if the norm uses it.
        var: Places of the running variance, if the norm uses it.
    """

    scale: Span | None
    shift: Span | None
    mean: Span | None
    var: Span | None

    def spans(self) -> list[Span]:
        """Return the places of all tensors of the norm."""
        return [span for span in self if span is not None]


@dataclass(frozen=True)
class NormCall:
    """Deferred call of a function of ``NORMS``.

    Attributes:
        tensors: Scale, shift, running mean and variance; None for missing tensors and for
            statistics of the batch.
        trailing: Number of last axes that the scale has, or 0 if it has axis 1.
        spread: Running variance plus eps, if the norm uses it.
        normalise: Function that makes the call without scale and shift.
    """

    tensors: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    trailing: int
    spread: Tensor | None
    normalise: Callable[[], Tensor]


def norm_call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> NormCall | None:
    """Return the call of a function of ``NORMS``, or None if it mixes inputs.

    Args:
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    own = given.get("training", given.get("use_input_stats", True))  # statistics of the batch
    if own and func is functional.batch_norm:
        return None

    plain = {name: value for name, value in given.items() if name not in ("weight", "bias")}

    def normalise() -> Tensor:
        with torch.no_grad():
            out: Tensor = func(**plain)
        return out

    mean, var = (None, None) if own else (given["running_mean"], given["running_var"])
    return NormCall(
        (given["weight"], given.get("bias"), mean, var),
        len(given.get("normalized_shape", ())),
        None if var is None else var + given["eps"],
        normalise,
    )


@dataclass(frozen=True)
class Normed:
    """Application of a norm to activations.

    Attributes:
        norm: Places of its tensors.
        out: Output, protected from in-place operations.
        normal: Output before scale and shift.
        call: Call of the function.
    """

    norm: Norm
    out: Tensor
    normal: Tensor
    call: NormCall

    def derivatives(
        self,
        d: Tensor,  # shaped like out
        axis: int,
        rows: slice = slice(None),
    ) -> Iterator[tuple[Span, Tensor]]:  # (b, size)
        """Yield the places of each tensor and the per-input derivatives with respect to it.

        Args:
            d: Gradient at ``out``.
            axis: Batch axis of ``out``.
            rows: Slice of the inputs.
        """
        at = (slice(None),) * axis + (rows,)
        of_each = widened(d[at])
        by_scale = self._sum(of_each * widened(self.normal[at]), axis)
        by_shift = self._sum(of_each, axis)
        norm, scale, spread = self.norm, self.call.tensors[0], self.call.spread
        if norm.scale is not None:
            yield norm.scale, by_scale
        if norm.shift is not None:
            yield norm.shift, by_shift
        if spread is None:
            return
        gain = spread.rsqrt() if scale is None else scale / spread.sqrt()
        if norm.mean is not None:
            yield norm.mean, -gain * by_shift
        if norm.var is not None:
            yield norm.var, -gain / (2 * spread.sqrt()) * by_scale

    def _sum(self, d: Tensor, axis: int) -> Tensor:  # (B, size)
        """Sum over positions."""
        last = self.call.trailing
        own = range(d.dim() - last, d.dim()) if last else (1,)
        positions = [i for i in range(d.dim()) if i != axis and i not in own]
        summed = d.sum(positions, keepdim=True) if positions else d
        return summed.movedim(axis, 0).flatten(1)
