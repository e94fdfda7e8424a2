"""Activations in names of architectures, such as ``mlp:tanh``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from geomerge.errors import OptionError, did_you_mean

__all__ = ["ACTIVATIONS", "USUAL", "activation", "check_activation", "split_activation"]

USUAL = "relu"  # activation of names without one
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def activation(name: str) -> nn.Module:
    """Return a new activation, one of :data:`ACTIVATIONS`."""
    return ACTIVATIONS[name]()


def check_activation(name: str) -> str:
    """Return the name of an activation.

    Raises:
        OptionError: If the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise OptionError(
            f"unknown activation {name!r}{did_you_mean(name, ACTIVATIONS)} (or module:factory)"
        )
    return name


def split_activation(architecture: str) -> tuple[str, str]:
    """Return an architecture's name without its activation, and the activation.

    Args:
        architecture: Name such as ``"mlp"`` or ``"mlp:tanh"``.
    """
    name, _, own = architecture.partition(":")
    return name, own or USUAL
