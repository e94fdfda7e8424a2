"""``nn.Module`` -> a pure function of one weight vector."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geomerge.errors import CheckpointError, OptionError, TaskError, first_line
from geomerge.networks.gradients import gradients_into

__all__ = ["Network", "check_device", "places"]


def check_device(device: str | torch.device) -> str | torch.device:
    """Return a device that can compute.

    Raises:
        OptionError: If this machine has no such device.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"cannot compute on {device!r} ({first_line(error)}); use --device cpu"
        ) from error
    return device


def places(shapes: Mapping[str, torch.Size]) -> dict[str, slice]:
    """Return where each tensor lies in a weight vector that holds them one after the other."""
    found, start = {}, 0
    for name, shape in shapes.items():
        found[name] = slice(start, start + shape.numel())
        start += shape.numel()
    return found


@contextmanager
def _trainable(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Give a module's parameters, with gradients enabled for them as long as the block lasts."""
    parameters = list(module.parameters())
    for p in parameters:
        p.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield parameters
    finally:
        for p in parameters:
            p.requires_grad_(False)


class Network:
    """A network as a function of inputs and one weight vector, deterministic.

    The vector holds every floating point tensor of the state dict: parameters first, then buffers
    (running statistics), so that a path between two networks moves those too. Tied weights appear
    once. Integer buffers stay as they are in the module.

    Args:
        module: The network; it is put in evaluation mode (no dropout, frozen statistics).
        device: Where it computes.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> network = gm.Network(nn.Linear(2, 3))
        >>> network.n  # six weights and three biases
        9
        >>> w = torch.zeros(network.n)
        >>> network.logits(w, torch.ones(4, 2)).shape
        torch.Size([4, 3])
        >>> loss, gradient = network.gradient(w, torch.ones(4, 2), lambda logits: logits.sum())
        >>> gradient  # by w, in the order of the state dict
        tensor([4., 4., 4., 4., 4., 4., 4., 4., 4.])
    """

    def __init__(self, module: nn.Module, device: str | torch.device = "cpu") -> None:
        self.columns = slice(None)  # of the outputs that count
        self.max_batch: int | None = None  # inputs of one pass; more are passed in parts
        self.module = module.to(check_device(device)).eval().requires_grad_(False)
        self.device = torch.device(device)
        tensors = [*module.named_parameters(), *module.named_buffers()]
        parts = {name: value for name, value in tensors if value.is_floating_point()}
        self.n_parameters = sum(p.numel() for p in module.parameters())
        self.shapes = {name: value.shape for name, value in parts.items()}
        self.slices = places(self.shapes)
        self.n = sum(shape.numel() for shape in self.shapes.values())  # length of the weight vector
        self.initial = self.ravel(parts)  # (n,): the weights that the module came with

    @property
    def trained(self) -> Tensor:  # (n,), bool
        """A new mask of the parameters, which come before the buffers in the weight vector."""
        return torch.arange(self.n, device=self.device) < self.n_parameters

    def head_view(self, columns: slice) -> Network:
        """Return the same network with only some outputs: one head of several."""
        view = copy.copy(self)
        view.columns = columns
        return view

    def ravel(self, tensors: Mapping[str, Tensor]) -> Tensor:  # (n,)
        """Return the weight vector of named tensors, as float32 on this device."""
        return torch.cat([tensors[k].detach().reshape(-1) for k in self.shapes]).to(self.device)

    def unravel(
        self,
        w: Tensor,  # (n,)
    ) -> dict[str, Tensor]:
        """Return views of a weight vector by name."""
        return {k: w[self.slices[k]].view(shape) for k, shape in self.shapes.items()}

    def module_at(
        self,
        w: Tensor,  # (n,)
    ) -> nn.Module:
        """Return a new module with its own copy of weights, in evaluation mode, trainable."""
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        own = self.unravel(w.detach().clone())
        memo: dict[int, Any] = {}
        for name, tensor in tensors:
            if name in own:
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(own[name]) if is_parameter else own[name]
        return copy.deepcopy(self.module, memo).requires_grad_(True).eval()

    def shared_module(
        self,
        w: Tensor,  # (n,)
    ) -> nn.Module:
        """Return the network's only module, its weights pointed at a vector.

        No weight is copied. The module computes with whatever the vector holds later, and any other
        method of the network points it elsewhere: :meth:`module_at` makes a module to keep.
        """
        views = self.unravel(w)
        for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            if name in views:
                tensor.data = views[name]
        return self.module

    def state_dict(
        self,
        w: Tensor,  # (n,)
    ) -> dict[str, Tensor]:
        """Return a copy of the module's state dict at a weight vector, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.shared_module(w).state_dict().items()}

    def outputs(
        self,
        w: Tensor,  # (n,)
        x: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits, differentiable in ``w`` and ``x``."""
        out: Tensor = functional_call(self.module, self.unravel(w), (x,))
        return out[:, self.columns]

    def logits(
        self,
        w: Tensor,  # (n,)
        x: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits without derivatives; faster than :meth:`outputs`."""
        with torch.no_grad():
            module = self.shared_module(w)
            parts = [module(part)[:, self.columns] for part in x.split(self.max_batch or len(x))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def all_logits(
        self,
        w: Tensor,  # (n,)
        batches: Iterable[Tensor],
    ) -> Tensor:  # (N, m)
        """Return the logits of all inputs, taken batch by batch."""
        return torch.cat([self.logits(w, x) for x in batches])

    def gradient(
        self,
        w: Tensor,  # (n,)
        x: Tensor,  # (B, ...)
        loss_of: Callable[[Tensor], Tensor],
        out: Tensor | None = None,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return a loss of the logits and its gradient in ``w``.

        Args:
            w: The weights.
            x: Inputs.
            loss_of: Logits, shape (B, m), to one number.
            out: Where the gradient goes; None makes a new vector.

        Returns:
            The loss, and its gradient, shape (n,). Buffers are not trained: their entries are zero.
        """
        module = self.shared_module(w)
        out = torch.empty_like(w) if out is None else out
        if self.max_batch is not None and len(x) > self.max_batch:
            return self._gradient_in_parts(w, x, loss_of, out)
        with _trainable(module) as parameters:
            loss = gradients_into(
                out[: self.n_parameters],
                parameters,
                lambda: loss_of(module(x)[:, self.columns]),
            )
        out[self.n_parameters :] = 0
        return float(loss.detach()), out

    def _gradient_in_parts(
        self,
        w: Tensor,  # (n,)
        x: Tensor,  # (B, ...)
        loss_of: Callable[[Tensor], Tensor],
        out: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the same through two passes, the second from the gradient at the logits."""
        assert self.max_batch is not None
        logits = self.logits(w, x).requires_grad_()
        with torch.enable_grad():
            loss = loss_of(logits)
            (at_logits,) = torch.autograd.grad(loss, logits)
        sums = out.zero_()[: self.n_parameters].split([p.numel() for p in self.module.parameters()])
        with _trainable(self.shared_module(w)) as parameters:
            for part, wanted in zip(
                x.split(self.max_batch), at_logits.split(self.max_batch), strict=True
            ):
                parts = torch.autograd.grad(
                    self.module(part)[:, self.columns], parameters, wanted,
                    allow_unused=True, materialize_grads=True,
                )  # fmt: skip
                for total, one in zip(sums, parts, strict=True):
                    total += one.reshape(-1)
        return float(loss.detach()), out

    def check_inputs(
        self,
        w: Tensor,  # (n,)
        x: Tensor,  # (B, ...)
        classes: int,
        source: str,
    ) -> None:
        """Refuse inputs that the network cannot take, or two outputs for the same input.

        Args:
            w: The weights.
            x: A small batch of the task's inputs.
            classes: How many classes the task's labels name.
            source: Name of the task, for messages.

        Raises:
            TaskError: If the network fails on the inputs or has fewer outputs than classes.
            CheckpointError: If the outputs are not logits (B, m), not finite or not repeatable.
        """
        module = self.shared_module(w)
        with torch.no_grad():
            try:
                out, again = module(x), module(x)
            except Exception as error:  # whatever a network's own code raises
                raise TaskError(
                    f"the network cannot take the inputs of {source}, of shape "
                    f"{tuple(x.shape[1:])} ({first_line(error)}); name the task it was "
                    "trained for"
                ) from error
        if not isinstance(out, Tensor) or out.dim() != 2:
            raise CheckpointError(
                "expected a network that returns logits of shape (batch, classes); wrap it so"
            )
        out, again = out[:, self.columns], again[:, self.columns]
        if out.shape[1] < classes:
            raise TaskError(
                f"the network has {out.shape[1]} outputs and {source} has {classes} classes; "
                "expected at least as many outputs as classes: name another task"
            )
        if not torch.isfinite(out).all():
            raise CheckpointError(f"the network's outputs on {source} are not finite; check it")
        if not torch.equal(out, again):
            raise CheckpointError(
                "the network gives two different outputs for the same weights and inputs; "
                "remove its randomness from evaluation mode"
            )
