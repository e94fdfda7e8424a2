"""Networks as pure functions of inputs and one weight vector."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geomerge.errors import CheckpointError, OptionError, TaskError, first_line
from geomerge.io import paged
from geomerge.io.containers import is_mask
from geomerge.networks.autocast import check_precision, passes, widened
from geomerge.networks.batches import (
    Batch,
    Shape,
    arguments,
    batch_size,
    is_plain,
    pass_to,
    shape_of,
    split,
    text_length,
)
from geomerge.networks.factor_form import FactorForm
from geomerge.networks.gradients import gradients_into
from geomerge.networks.input_shapes import why_refused
from geomerge.networks.outputs import logits_in, token_rows
from geomerge.networks.room import Room
from geomerge.networks.wrappers import plain_module, without_graph

__all__ = ["Network", "check_device", "inputs_at_once", "places"]

_NUMBERS = 2**23  # elements of a pass's inputs without gradients; activations have many more
# Elements that a token counts as. Activations of sixteen times as many tokens are larger than what
# an allocator keeps for reuse, and a small transformer takes four times as long.
_PER_TOKEN = 2**11
# Share of these in a pass of a convolutional network on a CPU. Maps of more inputs leave the
# caches, and each layer requests memory from the system: per image, 1000 of 32 x 32 take twice as
# long.
_CACHED = 1 / 16

_HALF = (torch.float16, torch.bfloat16)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_device(device: str | torch.device) -> str | torch.device:
    """Check that a device is available, and return it.

    Raises:
        OptionError: If the device is not available.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"cannot compute on {device!r} ({first_line(error)}); set `device` to 'cpu'"
        ) from error
    return device


def inputs_at_once(shape: Shape, share: float = 1.0) -> int:
    """Return the largest number of inputs per pass without gradients, by their size.

    Args:
        shape: Shape of one input; of a text, with its padding.
        share: Share of the usual number of elements.
    """
    numbers = math.prod(shape) if is_plain(shape) else _PER_TOKEN * text_length(shape)
    return max(1, int(share * _NUMBERS) // max(numbers, 1))


def places(shapes: Mapping[str, torch.Size]) -> dict[str, slice]:
    """Return the slice of each tensor in the concatenation of flattened tensors."""
    slices, start = {}, 0
    for name, shape in shapes.items():
        slices[name] = slice(start, start + shape.numel())
        start += shape.numel()
    return slices


class Network:
    """A deterministic network as a function of inputs and one weight vector.

    The outputs of a language model are the logits at every token of its texts without padding, one
    row per token.

    The vector holds every floating-point tensor of the state dict: parameters first, then buffers
    (running statistics), which thus change along a path as well. Tied weights appear once. Integer
    buffers, and buffers outside of the state dict, are constants.

    Parameters that do not require gradients are frozen: walks do not change them, nor the
    statistics of norm layers whose parameters are all frozen. If no parameter of a module requires
    gradients, it was prepared for evaluation, and nothing is frozen.

    Args:
        module: Module, which is copied. The copy is in evaluation mode (no dropout, frozen
            statistics) and in float32 if the module has half precision. Compiled modules and
            ``DataParallel`` are unwrapped.
        device: Device for computations.
        logits: Function of the module's output that returns the logits, shape (B, m); None uses
            :func:`~geomerge.networks.outputs.logits_in`.

    Attributes:
        module: Copy of the module.
        device: Device for computations.
        shapes: Shape of each tensor of the weight vector, by its name in the state dict.
        slices: Slice of each tensor in the weight vector.
        n: Length of the weight vector.
        n_parameters: Number of entries that are parameters.
        initial: Weights of the given module, shape (n,).
        columns: Slice of the used outputs.
        max_batch: Largest number of inputs per pass; None for no limit.
        max_moments: Largest number of bytes of second moments that a measurement of a metric holds
            at once; None for no limit.
        factor_form: Form of the Kronecker factors of the network's metric.
        precision: Type in which passes with derivatives, and targets, compute products,
            ``"float32"`` or ``"bfloat16"``; weights, logits and gradients are in float32.
        room: Smaller limit where memory did not suffice, of all views of the module.
        frozen: Names of the frozen tensors.
        constants: Buffers that replace the module's in this view, by name.

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
        >>> gradient  # with respect to w, in the order of the state dict
        tensor([4., 4., 4., 4., 4., 4., 4., 4., 4.])
    """

    def __init__(
        self,
        module: nn.Module,
        device: str | torch.device = "cpu",
        logits: Callable[[Any], Tensor] | None = None,
    ) -> None:
        check_device(device)
        module = plain_module(module)
        self.columns = slice(None)
        self.max_batch: int | None = None
        self.max_moments: int | None = None
        self.factor_form = FactorForm.WHOLE
        self.precision = "float32"
        self.constants: Mapping[str, Tensor] = {}
        self.device = torch.device(device)
        self._logits_in = logits or logits_in
        stored = set(module.state_dict())
        buffers = [(name, b) for name, b in module.named_buffers() if not is_mask(b)]
        tensors = {  # without masks of infinity, which cannot be interpolated
            name: value
            for name, value in [*module.named_parameters(), *buffers]
            if value.is_floating_point() and name in stored
        }
        self.shapes = {name: value.shape for name, value in tensors.items()}
        self.frozen = frozenset(_frozen(module) & self.shapes.keys())
        self.slices = places(self.shapes)
        self.n = sum(shape.numel() for shape in self.shapes.values())
        parameters = (p for p in module.parameters() if p.is_floating_point())
        self.n_parameters = sum(p.numel() for p in parameters)
        initial = self.ravel(tensors)
        half = initial.dtype in _HALF
        self.initial = initial.float() if half else initial
        # The copy's weights are views of the vector, so that no second copy is allocated.
        copied = _copy(module, self.unravel(self.initial))
        copied = copied.float() if half else copied
        self.module = copied.to(self.device).eval().requires_grad_(False)
        self.room = Room(self.module)
        self._share = _CACHED if self.convolves and self.device.type == "cpu" else 1.0

    @cached_property
    def _tensors(self) -> list[tuple[str, dict[str, Any], str]]:
        """Name of each tensor, with its place in the module: looking for it takes far longer."""
        found = []
        for name in self.shapes:
            owner, _, key = name.rpartition(".")
            layer = self.module.get_submodule(owner)
            where: Any = layer._parameters if key in layer._parameters else layer._buffers
            found.append((name, where, key))
        return found

    @property
    def convolves(self) -> bool:
        """Whether there are convolutions among the layers."""
        return any(isinstance(layer, _CONVOLUTIONS) for layer in self.module.modules())

    @property
    def trained(self) -> Tensor:  # (n,), bool
        """Mask of the parameters, which precede the buffers in the weight vector."""
        return torch.arange(self.n, device=self.device) < self.n_parameters

    @property
    def last_layer(self) -> str:
        """Name of the layer of the last parameters, behind which buffers may follow."""
        names = [name for name in self.shapes if self.slices[name].stop <= self.n_parameters]
        return names[-1].rpartition(".")[0]

    @property
    def movable(self) -> Tensor:  # (n,), bool
        """Mask of the parameters that are not frozen."""
        free = self.trained
        for name in self.frozen:
            free[self.slices[name]] = False
        return free

    @property
    def held(self) -> Tensor | None:  # (n,), bool
        """Mask of the frozen entries; None if nothing is frozen."""
        if not self.frozen:
            return None
        mask = torch.zeros(self.n, dtype=torch.bool, device=self.device)
        for name in self.frozen:
            mask[self.slices[name]] = True
        return mask

    def holding(self, names: Iterable[str]) -> Network:
        """Return the same network with other frozen tensors.

        Args:
            names: Names of the tensors in the state dict.
        """
        view = copy.copy(self)
        view.frozen = frozenset(names)
        return view

    def with_constants(self, constants: Mapping[str, Tensor]) -> Network:
        """Return the same network with other buffers, such as a task's permutation.

        All views of one module must have constants with the same names.

        Args:
            constants: Values by name of the buffer in the module.
        """
        view = copy.copy(self)
        view.constants = {name: value.to(self.device) for name, value in constants.items()}
        return view

    def head_view(self, columns: slice) -> Network:
        """Return the same network with a slice of its outputs, such as one of several heads."""
        view = copy.copy(self)
        view.columns = columns
        return view

    def limited(
        self,
        max_batch: int,
        max_moments: int | None = None,
        factor_form: FactorForm = FactorForm.WHOLE,
    ) -> Network:
        """Return the same network with limits of memory.

        Args:
            max_batch: Largest number of inputs per pass.
            max_moments: Largest number of bytes of second moments that are held at once; None for
                no limit.
            factor_form: Form of the Kronecker factors of the network's metric.
        """
        view = copy.copy(self)
        view.max_batch, view.max_moments, view.factor_form = max_batch, max_moments, factor_form
        return view

    def with_precision(self, precision: str) -> Network:
        """Return the same network with passes for derivatives and for targets in a precision.

        :meth:`logits` are computed in float32 in any, :meth:`logits_by_precision` are not.

        Args:
            precision: ``"float32"`` or ``"bfloat16"``.

        Raises:
            OptionError: If the weights are not in float32, or the device has no autocast.
        """
        check_precision(precision, self.initial.dtype, self.device)
        view = copy.copy(self)
        view.precision = precision
        return view

    def alike(self, module: nn.Module) -> Network:
        """Return a network of another module with the same device and function for logits."""
        made = Network(module, self.device, self._logits_in)
        return made.holding(self.frozen & made.shapes.keys())

    def ravel(self, tensors: Mapping[str, Tensor]) -> Tensor:  # (n,)
        """Return named tensors as a weight vector on the network's device."""
        if not self.shapes:
            return torch.empty(0, device=self.device)
        parts = [tensors[k].detach() for k in self.shapes]
        kind = reduce(torch.promote_types, (part.dtype for part in parts))
        w = paged.empty(self.n, kind, parts[0].device)
        for part, place in zip(parts, self.slices.values(), strict=True):
            w[place] = part.reshape(-1)
            paged.release(w[place], part)
        return w.to(self.device)

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
        """Return a new, trainable module with a copy of weights, in evaluation mode.

        Frozen parameters do not require gradients.
        """
        own = {}
        for name, tensor in self.unravel(w).items():
            own[name] = tensor.detach().clone()
            paged.release(tensor)
        module = _copy(self.module, own).requires_grad_(True).eval()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        _put(module, {name: value.clone() for name, value in self.constants.items()})
        return module

    def shared_module(
        self,
        w: Tensor,  # (n,)
    ) -> nn.Module:
        """Return the network's internal module with weights that are views of a vector.

        No weight is copied. Later changes of the vector change the module, and other methods of the
        network replace its weights. Use :meth:`module_at` for a module to keep.
        """
        for name, where, key in self._tensors:
            if name not in self.constants:
                where[key].data = w[self.slices[name]].view(self.shapes[name])
        _put(self.module, self.constants)
        return self.module

    def state_dict(
        self,
        w: Tensor,  # (n,)
    ) -> dict[str, Tensor]:
        """Return a copy of the module's state dict at a weight vector, on the CPU."""
        own = self.shared_module(w).state_dict()
        store = paged.Store(w.nbytes)
        found = {}
        for name, value in own.items():
            found[name] = store.hold(value.detach().cpu().clone())
            paged.release(value)
        return found

    def call(self, module: nn.Module, x: Batch) -> Tensor:  # (B, m)
        """Return the logits of a module of this architecture on a batch, in its own type."""
        logits = token_rows(self._logits_in(pass_to(module, x)), x)
        return logits if self.columns == slice(None) else logits[:, self.columns]

    def _call_in_precision(self, module: nn.Module, x: Batch) -> Tensor:  # (B, m)
        with passes(self.precision, self.device):
            logits = self.call(module, x)
        return widened(logits)

    def outputs(
        self,
        w: Tensor,  # (n,)
        x: Batch,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits, differentiable with respect to ``w`` and ``x``, by the precision."""
        return self.functional(self.unravel(w), x)

    def functional(
        self,
        tensors: Mapping[str, Tensor],
        x: Batch,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits as a differentiable function of named tensors.

        The pass is computed by :attr:`precision`, and the logits are in the weights' type.

        Args:
            tensors: Tensors that replace the module's, by name.
            x: Inputs.
        """
        return token_rows(self.at_positions(tensors, x), x)

    def at_positions(
        self,
        tensors: Mapping[str, Tensor],
        x: Batch,  # (B, ...)
    ) -> Tensor:  # (B, m) or (B, T, m)
        """Return the logits with an axis of positions, including padding, for language models."""
        args, kwargs = arguments(x)
        with passes(self.precision, self.device):
            out = functional_call(self.module, {**tensors, **self.constants}, args, kwargs)
            logits = self._logits_in(out)[..., self.columns]
        return widened(logits)

    def logits(
        self,
        w: Tensor,  # (n,)
        x: Batch,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits without derivatives, in the weights' type and faster than outputs.

        Raises:
            OptionError: If memory does not suffice for a pass of one input.
        """
        return self._without_derivatives(self.call, w, x)

    def logits_by_precision(
        self,
        w: Tensor,  # (n,)
        x: Batch,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits without derivatives, computed by :attr:`precision`.

        These are targets of walks, whose own passes are rounded in the same way.

        Raises:
            OptionError: If memory does not suffice for a pass of one input.
        """
        return self._without_derivatives(self._call_in_precision, w, x)

    def _without_derivatives(
        self, call: Callable[[nn.Module, Batch], Tensor], w: Tensor, x: Batch
    ) -> Tensor:
        most = min(self.max_batch or _NUMBERS, inputs_at_once(shape_of(x), self._share))
        attempt = partial(self._logits_of, call, w, x)
        return self.room.passed(min(most, batch_size(x)), attempt)

    def _logits_of(
        self,
        call: Callable[[nn.Module, Batch], Tensor],
        w: Tensor,  # (n,)
        x: Batch,  # (B, ...)
        most: int,
    ) -> Tensor:  # (B, m)
        """Return the logits without derivatives, of at most so many inputs at a time."""
        with torch.no_grad():
            module = self.shared_module(w)
            most = min(most, inputs_at_once(shape_of(x), self._share))
            if batch_size(x) <= most:
                return call(module, x)
            return torch.cat([call(module, part) for part in split(x, most)])

    def all_logits(
        self,
        w: Tensor,  # (n,)
        batches: Iterable[Batch],
    ) -> Tensor:  # (N, m)
        """Return the logits of all inputs, computed batch by batch."""
        return torch.cat([self.logits(w, x) for x in batches])

    def gradient(
        self,
        w: Tensor,  # (n,)
        x: Batch,  # (B, ...)
        loss_of: Callable[[Tensor], Tensor],
        out: Tensor | None = None,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return a loss of the logits and its gradient with respect to ``w``.

        Args:
            w: Weights.
            x: Inputs.
            loss_of: Function of the logits, shape (B, m), that returns a scalar.
            out: Vector for the gradient; None allocates a new one.

        Returns:
            The loss, and its gradient, shape (n,). Entries of buffers and frozen weights are zero.

        Raises:
            OptionError: If memory does not suffice for a pass of one input.
        """
        out = torch.empty_like(w) if out is None else out

        def attempt(most: int) -> tuple[float, Tensor]:
            if batch_size(x) <= most:
                return self._gradient(w, x, loss_of, out)
            return self._gradient_in_parts(w, x, loss_of, out, most)

        size = batch_size(x)
        found = self.room.passed(min(self.max_batch or size, size), attempt)
        for name in self.frozen:
            out[self.slices[name]] = 0
        return found

    def _gradient(
        self,
        w: Tensor,  # (n,)
        x: Batch,  # (B, ...)
        loss_of: Callable[[Tensor], Tensor],
        out: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        module = self.shared_module(w)
        with self._trainable() as parameters:
            loss = gradients_into(
                out[: self.n_parameters],
                parameters,
                lambda: loss_of(self._call_in_precision(module, x)),
            )
        out[self.n_parameters :] = 0
        return float(loss.detach()), out

    @contextmanager
    def _trainable(self) -> Iterator[list[nn.Parameter]]:
        """Yield the module's parameters, which require gradients inside the context."""
        tensors = (where[key] for _, where, key in self._tensors)
        parameters = [t for t in tensors if isinstance(t, nn.Parameter)]
        for p in parameters:
            p.requires_grad_(True)
        try:
            with torch.enable_grad():
                yield parameters
        finally:
            for p in parameters:
                p.requires_grad_(False)

    def _gradient_in_parts(
        self,
        w: Tensor,  # (n,)
        x: Batch,  # (B, ...)
        loss_of: Callable[[Tensor], Tensor],
        out: Tensor,  # (n,)
        most: int,
    ) -> tuple[float, Tensor]:
        """Return the same in parts, by a second pass from the gradient at the logits."""
        logits = self._logits_of(self._call_in_precision, w, x, most).requires_grad_()
        with torch.enable_grad():
            loss = loss_of(logits)
            (at_logits,) = torch.autograd.grad(loss, logits)
        self.shared_module(w)
        with self._trainable() as parameters:
            sums = out.zero_()[: self.n_parameters].split([p.numel() for p in parameters])
            done = 0
            for part in split(x, most):
                outputs = self._call_in_precision(self.module, part)
                wanted = at_logits[done : done + len(outputs)]
                done += len(outputs)
                gradients = torch.autograd.grad(
                    outputs, parameters, wanted,
                    allow_unused=True, materialize_grads=True,
                )  # fmt: skip
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient.reshape(-1)
        return float(loss.detach()), out

    def check_inputs(
        self,
        w: Tensor,  # (n,)
        x: Batch,  # (B, ...)
        classes: int,
        source: str,
        first: int = 0,
    ) -> None:
        """Check that the network accepts inputs and has repeatable outputs.

        Args:
            w: Weights.
            x: Small batch of the task's inputs.
            classes: Number of classes of the task's labels.
            source: Name of the task, for error messages.
            first: Smallest class number of the task's labels.

        Raises:
            TaskError: If the network fails on the inputs or has fewer outputs than classes.
            CheckpointError: If the outputs are not logits (B, m), not finite or not repeatable.
        """
        module = self.shared_module(w)
        with torch.no_grad():
            try:
                passes = [pass_to(module, x) for _ in range(2)]
            except Exception as error:  # a network's code raises errors of any type
                raise TaskError(why_refused(self.module, x, source, error)) from error
            out, again = (
                token_rows(self._logits_in(output), x)[:, self.columns] for output in passes
            )
        if out.shape[1] < classes <= out.shape[1] + first:
            raise TaskError(
                f"the network has {out.shape[1]} outputs and the labels of {source} run from "
                f"{first} to {classes - 1}, expected class numbers from 0 on; subtract {first} "
                "from each"
            )
        if out.shape[1] < classes:
            raise TaskError(
                f"the network has {out.shape[1]} outputs and {source} has {classes} classes; "
                "expected at least as many outputs as classes: name another task"
            )
        if not torch.isfinite(out).all():
            raise CheckpointError(
                f"the network's outputs on {source} are not finite, expected numbers; check its "
                "weights and these inputs"
            )
        if not torch.equal(out, again):
            raise CheckpointError(
                "the network gives two different outputs for the same weights and inputs; "
                "remove its randomness from evaluation mode"
            )


def _copy(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module with some tensors replaced."""
    memo: dict[int, Any] = {**without_graph(module)}
    for name, own in [*module.named_parameters(), *module.named_buffers()]:
        if name in tensors:
            isolated = tensors[name].detach()
            is_parameter = isinstance(own, nn.Parameter)
            memo[id(own)] = nn.Parameter(isolated) if is_parameter else isolated
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # attributes of modules raise errors of any type
        raise CheckpointError(
            f"{type(module).__name__} cannot be copied ({first_line(error)}); keep only plain "
            "tensors, parameters and modules in it"
        ) from error


def _put(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Set buffers of a module by name."""
    for name, value in buffers.items():
        owner, _, last = name.rpartition(".")
        module.get_submodule(owner)._buffers[last] = value


def _frozen(module: nn.Module) -> frozenset[str]:
    """Return the names of frozen parameters, and of the buffers of frozen norm layers."""
    names = {name for name, p in module.named_parameters() if not p.requires_grad}
    if all(name in names for name, _ in module.named_parameters()):
        return frozenset()
    for path, layer in module.named_modules():
        own = [p.requires_grad for p in layer.parameters(recurse=False)]
        if own and not any(own) and isinstance(layer, nn.modules.batchnorm._NormBase):
            names |= {f"{path}.{kind}".lstrip(".") for kind, _ in layer.named_buffers()}
    return frozenset(names)
