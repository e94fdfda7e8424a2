"""Layers that normalise, then scale and shift: the derivatives by their tensors.

In y = scale (x - mean) / sqrt(var + eps) + shift every derivative of an output phi follows from the
gradient d at y and the normalised activations, so that no tensor needs a backward pass of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

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
    """Where the tensors of a norm lie in the weight vector; None is not there.

    Attributes:
        scale: First weight and the one after the last.
        shift: The same, as for all.
        mean: Running mean, of a norm that uses it.
        var: Running variance.
    """

    scale: Span | None
    shift: Span | None
    mean: Span | None
    var: Span | None

    def spans(self) -> list[Span]:
        """Return those that are there."""
        return [span for span in self if span is not None]


@dataclass(frozen=True)
class NormCall:
    """A call of a function of ``NORMS``, before it is done.

    Attributes:
        tensors: Scale, shift, running mean and variance; None where there is none, or where the
            inputs' own statistics are used.
        trailing: How many last axes the scale has, or 0 where it has axis 1.
        spread: Running variance with what is added to it, of a norm that uses it.
        normalise: Does the same call without scale and shift.
    """

    tensors: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    trailing: int
    spread: Tensor | None
    normalise: Callable[[], Tensor]


def norm_call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> NormCall | None:
    """Return what a call of a function of ``NORMS`` does; None where it mixes inputs."""
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    own = given.get("training", given.get("use_input_stats", True))  # statistics of the inputs
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
    """A norm applied to activations.

    Attributes:
        norm: The norm.
        out: What came out; an activation in place may not change it.
        normal: The same without scale and shift.
        call: How it was called.
    """

    norm: Norm
    out: Tensor
    normal: Tensor
    call: NormCall

    def derivatives(
        self,
        d: Tensor,  # shaped like out
        axis: int,
    ) -> Iterator[tuple[Span, Tensor]]:  # (B, size)
        """Yield where each tensor lies, and the derivatives by it for each input.

        Args:
            d: Gradient at ``out``.
            axis: Where ``out`` has the inputs.
        """
        by_scale, by_shift = self._sum(d * self.normal, axis), self._sum(d, axis)
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
