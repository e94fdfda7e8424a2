"""Identification of a module's architecture by its weights and outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from geomerge.errors import GeomergeError
from geomerge.networks.architectures.activations import ACTIVATIONS, USUAL
from geomerge.networks.architectures.known import KNOWN, plain_name
from geomerge.networks.architectures.rebuild import rebuild_network, recognise
from geomerge.networks.architectures.stacks import fit_stack
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network

__all__ = ["identify", "same_architecture"]

_INPUTS = 4
_SAME = 1e-5  # relative difference of outputs due to rounding


def identify(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch | None = None,  # (B, ...)
) -> str | None:
    """Return the name of the architecture that reproduces a network's outputs.

    Weights do not determine the activation, so a network with each activation is rebuilt from them,
    and its outputs are compared.

    Args:
        network: Network with all its outputs.
        w: Weights of the network.
        x: Inputs of the network; None draws inputs for a stack of Linear layers, and identifies no
            other networks.

    Returns:
        A name such as ``"mlp:tanh"``; None if no named architecture fits.
    """
    state = network.shared_module(w).state_dict()
    name = recognise(state)
    if name is None:
        return None
    if x is None:
        x = _drawn(state)
        if x is None:
            return None
    known = [f"{name}:{one}" for one in (USUAL, *ACTIVATIONS)] if KNOWN[name].activated else [name]
    try:
        expected = network.logits(w, x)
        for architecture in known:
            module = rebuild_network(state, architecture, "network").to(network.device)
            with torch.no_grad():
                got = network.call(module, x)
            if got.shape == expected.shape and _same(got, expected):
                return plain_name(architecture)
    except (GeomergeError, RuntimeError, ValueError, TypeError):  # the inputs do not fit
        return None
    return None


def same_architecture(one: str, other: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether two names mean one architecture, such as ``mlp:relu`` and ``lenet-300-100``.

    Both are made with the same random weights, and their outputs are compared. For networks other
    than stacks of Linear layers the names must be equal.

    Args:
        one: Name of an architecture.
        other: Name of another architecture.
        state: Tensors of a network of the second name; only their names and shapes are used.
    """
    if plain_name(one) == plain_name(other):
        return True
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in state.items()
        if value.is_floating_point()
    }
    x = _drawn(weights)
    if x is None:
        return False
    try:
        a, b = (rebuild_network(weights, name, "network") for name in (one, other))
        if a.state_dict().keys() != b.state_dict().keys():
            return False
        with torch.no_grad():
            return _same(a(x), b(x))
    except (GeomergeError, RuntimeError, ValueError, TypeError):  # the weights do not fit
        return False


def _drawn(state: Mapping[str, Tensor]) -> Tensor | None:
    stack = fit_stack(state)
    if stack is None:
        return None
    first = next(iter(stack.parameters()))
    return torch.randn(_INPUTS, first.shape[1], generator=torch.Generator().manual_seed(0))


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _SAME * other.norm())
