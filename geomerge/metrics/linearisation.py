r"""Linearised network: Jacobian products J u and J'p from one forward pass.

The graph of one backward pass J'p is kept. It is linear in p, so that its derivative with respect
to p gives J u ("double backward"), and both products reuse one forward pass. Unlike
``torch.func.linearize`` this needs no tracing (0.03 s instead of 2.5 s on an MLP) and a tenth of
the memory, at the same speed. It requires operations that are twice differentiable in backward
mode; ``linearize`` requires forward mode.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from geomerge.errors import NumericalError
from geomerge.metrics.outputs import output_map
from geomerge.networks.batches import Batch, batch_size, take
from geomerge.networks.network import Network

__all__ = ["Linearisation", "differentiable", "mapped_outputs", "vectorised"]


class Linearisation:
    """Jacobian J of a network's mapped outputs on one batch of inputs.

    Its products are in the weights' type whatever the network's precision: solutions in J and J'
    need the two to be transposes of each other.

    Args:
        network: Network to linearise.
        w: Weights at which to linearise, shape (n,).
        x: Inputs, shape (B, ...). Their activations are held as long as this object.
        output: Name of the output map, see :func:`~geomerge.metrics.output_map`.

    Attributes:
        outputs: Mapped outputs phi, shape (B, m), with their autograd graph.

    Raises:
        NumericalError: If the outputs are not finite.
    """

    def __init__(self, network: Network, w: Tensor, x: Batch, output: str) -> None:
        self._network = network = network.with_precision("float32")
        # Each tensor is a leaf: gradients of views of one vector would have length n each.
        self._parts = {k: v.detach().requires_grad_() for k, v in network.unravel(w).items()}
        with differentiable(), torch.enable_grad():
            self.outputs = mapped_outputs(network, self._parts, x, output)
            if not torch.isfinite(self.outputs).all():
                raise NumericalError(
                    "the network's outputs are not finite where a metric is measured, expected "
                    "numbers; check the weights and the inputs"
                )
            self._start = torch.zeros_like(self.outputs, requires_grad=True)
            self._pulled = self._backward(self._start, create_graph=True)

    def push(
        self,
        u: Tensor,  # (n,)
    ) -> Tensor:  # (B, m)
        """Return J u."""
        along = self._network.unravel(u)
        # Tensors that do not affect the outputs have a constant gradient, zero.
        pairs = [
            (g, along[k]) for k, g in zip(self._parts, self._pulled, strict=True) if g.requires_grad
        ]
        (result,) = torch.autograd.grad(
            [g for g, _ in pairs], self._start, [v for _, v in pairs], retain_graph=True
        )
        return result

    def pull(
        self,
        p: Tensor,  # (B, m)
    ) -> Tensor:  # (n,)
        """Return J'p."""
        return torch.cat([g.reshape(-1) for g in self._backward(p, create_graph=False)])

    def _backward(self, p: Tensor, create_graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            self.outputs,
            list(self._parts.values()),
            p,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )


def mapped_outputs(
    network: Network,
    parts: dict[str, Tensor],
    x: Batch,  # (B, ...)
    output: str,
) -> Tensor:  # (B, m)
    """Return the mapped outputs as a function of the named tensors of a weight vector."""
    return output_map(network.functional(parts, x), output)


@contextmanager
def differentiable() -> Iterator[None]:
    """Make all derivatives of a network available inside the context.

    PyTorch has no derivatives with respect to running statistics, no second derivatives of fused
    attention, and no derivatives of its fast path for transformers.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _PlainNorms():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def vectorised(derivatives: Callable[[Callable[..., Any]], Any]) -> Any:
    """Return derivatives(vmap), or the same by a loop if a layer does not support ``vmap``.

    Args:
        derivatives: Function that computes derivatives of a network with ``vmap``, its argument, or
            a replacement of it.
    """
    with differentiable(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # vmap is still fastest
        try:
            return derivatives(vmap)
        except RuntimeError:  # recurrent layers cannot be vectorised over inputs
            return derivatives(_one_by_one)


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    def mapped(*batches: Batch) -> Any:
        count = batch_size(batches[0])
        return _stacked([function(*(take(x, i) for x in batches)) for i in range(count)])

    return mapped


def _stacked(results: list[Any]) -> Any:
    """Stack the tensors of results that are tuples, lists or dictionaries of one structure."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.stack(results)
    if isinstance(first, dict):
        return {name: _stacked([result[name] for result in results]) for name in first}
    return type(first)(_stacked(list(parts)) for parts in zip(*results, strict=True))


class _PlainNorms(TorchFunctionMode):
    """Function mode that computes norms with frozen statistics by elementary operations."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        own = _OWN_STATISTICS.get(func)
        if own is not None:
            bound = inspect.signature(func).bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            if not bound.arguments[own]:
                return _frozen_norm(**bound.arguments)
        return func(*args, **(kwargs or {}))


_OWN_STATISTICS: dict[Callable[..., Any], str] = {  # argument that enables batch statistics
    torch.nn.functional.batch_norm: "training",
    torch.nn.functional.instance_norm: "use_input_stats",
}


def _frozen_norm(
    input: Tensor,  # (B, channels, ...)
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    **_: object,
) -> Tensor:
    shape = (-1,) + (1,) * (input.dim() - 2)
    gain = (running_var + eps).rsqrt()
    y = (input - running_mean.view(shape)) * (gain if weight is None else gain * weight).view(shape)
    return y if bias is None else y + bias.view(shape)
