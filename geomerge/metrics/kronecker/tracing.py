"""Tracer of a forward pass that reports operations on weights and activations.

Products are detected at their computation, not by module type. Packed projections of attention,
functional layers and modules called twice are therefore treated like a Linear layer.
"""

from __future__ import annotations

import types
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from geomerge.metrics.kronecker.norms import NORMS, Norm, NormCall, Normed, norm_call
from geomerge.metrics.kronecker.products import (
    PRODUCTS,
    Block,
    Product,
    ProductCall,
    product_call,
)
from geomerge.metrics.kronecker.recurrent import RECURRENT
from geomerge.metrics.kronecker.uses import LOCAL, Local, Lookup, out_of_place
from geomerge.networks.network import Network

__all__ = ["Observer", "Tracer"]

# Whether a tensor depends on inputs (True), on weights alone (their names), or on neither.
Role = bool | frozenset[str] | None

# Functions that use only the shape, type or device of a tensor.
_LIKE = frozenset({
    "to", "type_as", "expand_as", "view_as", "reshape_as", "zeros_like", "ones_like", "empty_like",
    "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty", "new_full",
    "new_tensor",
})  # fmt: skip
_OF_FIRST = frozenset({"to", "type_as", "expand_as", "view_as", "reshape_as"})


class Observer(Protocol):
    """Receiver of the uses of weights in a forward pass, called before activations can change."""

    def product(self, product: Product, name: str) -> bool:
        """Handle a product, or return False to have it reported as a local operation."""

    def norm(self, normed: Normed) -> bool:
        """Handle a norm, or return False to have it reported as a local operation."""

    def lookup(self, lookup: Lookup) -> bool:
        """Handle a lookup, or return False if its rows are the same for all inputs."""

    def local(self, local: Local) -> None:
        """Handle a local operation."""

    def other(self, names: frozenset[str]) -> None:
        """Handle the names of weights that another operation combines with activations."""


class Tracer(TorchFunctionMode):
    """Function mode that reports operations on weights and activations.

    Args:
        network: Network whose forward pass is traced.
        w: Weight vector, shape (n,), of which the module's weights are views.
        inputs: Tensors that are treated as activations.
        observer: Receiver of the reports.
    """

    def __init__(
        self, network: Network, w: Tensor, inputs: list[Tensor], observer: Observer
    ) -> None:
        super().__init__()
        self._storage = w.untyped_storage().data_ptr()
        self._first = int(w.storage_offset())
        self._names = list(network.slices)
        self._spans = {(place.start, place.stop) for place in network.slices.values()}
        self._starts = [place.start for place in network.slices.values()]
        self._observer = observer
        self._roles = WeakTensorKeyDictionary()
        for tensor in inputs:
            self._roles[tensor] = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch and report it if it takes weights."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        if func in RECURRENT:
            for state in tree_leaves(args[1]):  # a state of zeros is an activation as well
                if isinstance(state, Tensor) and self.role(state) is None:
                    self._roles[state] = True
            with self:
                out = RECURRENT[func](*args, **kwargs)
            if out is not NotImplemented:
                return out
        roles = [self.role(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        names: frozenset[str] = frozenset().union(*(r for r in roles if isinstance(r, frozenset)))
        if not names:
            return self._mark(func(*args, **kwargs), True in roles or None, func, args)
        if not torch.is_grad_enabled():  # inside a custom autograd function, or detached
            self._observer.other(names)
            return self._mark(func(*args, **kwargs), True in roles or None, func, args)
        # Results of custom autograd functions have no role; products with them are tried as well.
        if True in roles or (func in PRODUCTS and self.role(args[0]) is None):
            out = self._with_activations(func, args, kwargs)
            if out is not None:
                return self._mark(out, True, func, args)
        return self._other(func, args, kwargs, names, True in roles)

    def _with_activations(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a function of weights and activations of a known kind; return None for others."""
        out = None
        if func in PRODUCTS and (call := product_call(func, args, kwargs)) is not None:
            if call.at_outputs is not None and call.bias is not None:  # bias of patch centres only
                with self:
                    shape = (-1, *(1 for _ in call.at_outputs.kernel))
                    plain = func(call.x, call.weight, None, *args[3:], **_without(kwargs, "bias"))
                    return plain + call.bias.view(shape)
            blocks = self._blocks(call)
            if blocks is not None:
                out = func(*args, **kwargs)
                if self._observer.product(Product(blocks, out, call), self.name(call.weight)):
                    return out.clone()
        elif func in NORMS and (called := norm_call(func, args, kwargs)) is not None:
            norm = self._norm(called)
            if norm is not None:
                normal = called.normalise()  # before an in-place change of its input
                out = func(*args, **kwargs)
                if self._observer.norm(Normed(norm, out, normal, called)):
                    return out.clone()
        elif func is functional.embedding and len(args) > 1 and self.span(args[1]) is not None:
            out = func(*args, **kwargs)
            found = Lookup(self.name(args[1]), out, args[0], len(args[1]))
            if self.role(args[0]) is True and self._observer.lookup(found):
                return out.clone()
            return None
        name, plain = out_of_place(func)
        given = tree_leaves((args, kwargs))
        if name not in LOCAL or not any(
            isinstance(leaf, Tensor) and self.role(leaf) is True for leaf in given
        ):
            return None
        if plain is not func:  # an in-place operation, which overwrites its operand
            changed, args = args[0], (args[0].clone(), *args[1:])
            self._roles[args[0]] = True
        local = self._local(name, plain, args, kwargs, out)
        self._observer.local(local)
        return local.out.clone() if plain is func else changed.copy_(local.out)

    def _local(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Tensor | None,
    ) -> Local:
        flat, form = tree_flatten((args, dict(kwargs)))
        roles = [self.role(leaf) if isinstance(leaf, Tensor) else None for leaf in flat]
        weights = [i for i, role in enumerate(roles) if isinstance(role, frozenset)]
        active = [i for i, role in enumerate(roles) if role is True]
        names = [tuple(sorted(r)) for r in roles if isinstance(r, frozenset)]
        key = (name, *zip(weights, names, strict=True), tuple(active))
        whole = [self._whole(flat[i]) for i in weights]
        out = func(*args, **kwargs) if out is None else out
        return Local(key, func, flat, form, weights, whole, active, out)

    def _whole(self, tensor: Tensor) -> bool:
        span = self.span(tensor)
        return tensor.is_contiguous() and span is not None and span in self._spans

    def _other(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        names: frozenset[str],
        active: bool,
    ) -> Any:
        """Call a function of weights alone, or of an unknown kind."""
        name = getattr(func, "__name__", "")
        if not active and func is functional.embedding and len(args) > 1:
            out = func(*args, **kwargs)
            if self.span(args[1]) is not None:
                found = Lookup(self.name(args[1]), out, args[0], len(args[1]))
                if self._observer.lookup(found):
                    return self._mark(out.clone(), True, func, args)
            return self._mark(out, names, func, args)
        out = func(*args, **kwargs)
        if name in _LIKE:
            kept = self.role(args[0]) if name in _OF_FIRST and args else None
            return self._mark(out, kept, func, args)
        made = any(isinstance(leaf, Tensor) for leaf in tree_leaves(out))
        if active and (made or name == "__setitem__"):
            self._observer.other(names)
        return self._mark(out, True if active else names, func, args)

    def role(self, tensor: Tensor) -> Role:
        """Return True if a tensor depends on inputs, else its weights' names, or None."""
        found: Role = self._roles.get(tensor)
        if found is None and self.span(tensor) is not None:
            return frozenset({self.name(tensor)})
        return found

    def _mark(self, out: Any, role: Role, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if role is not None:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor) and self.span(leaf) is None:
                    self._roles[leaf] = role
            if getattr(func, "__name__", "") == "__setitem__":
                self._roles[args[0]] = role
        return out

    def span(self, tensor: Tensor) -> tuple[int, int] | None:
        """Return the places of a tensor in the weight vector; None if it is not a view of it."""
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            return None
        if tensor.untyped_storage().data_ptr() != self._storage:
            return None
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        start = int(tensor.storage_offset()) - self._first
        return start, start + 1 + int(sum((size - 1) * step for size, step in steps))

    def name(self, tensor: Tensor) -> str:
        """Return the name of the tensor of which a view of the weight vector is a part."""
        start = int(tensor.storage_offset()) - self._first
        return self._names[bisect_right(self._starts, start) - 1]

    def _blocks(self, call: ProductCall) -> list[Block] | None:
        place = self.span(call.weight)
        if place is None or not call.weight.is_contiguous():
            return None
        if isinstance(self.role(call.x), frozenset):
            return None
        if call.bias is None:
            return call.blocks(place[0], None)
        added = self.span(call.bias)
        return None if added is None else call.blocks(place[0], added[0])

    def _norm(self, call: NormCall) -> Norm | None:
        places = [None if tensor is None else self.span(tensor) for tensor in call.tensors]
        whole = all(
            tensor is None or (tensor.is_contiguous() and place is not None)
            for tensor, place in zip(call.tensors, places, strict=True)
        )
        return Norm(*places) if whole and any(places) else None


def _without(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != name}


# PyTorch's attention without the check that passes the call back to the function mode, so that the
# projections inside are traced.
_attention = types.FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**functional.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=functional.multi_head_attention_forward.__defaults__,
)
