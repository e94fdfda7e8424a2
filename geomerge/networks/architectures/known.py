"""Named architectures: constructors, and recognition from weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import PathFinder
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from geomerge.errors import OptionError, did_you_mean
from geomerge.networks.architectures.activations import (
    ACTIVATIONS,
    USUAL,
    check_activation,
    split_activation,
)
from geomerge.networks.architectures.factory import network_from_factory
from geomerge.networks.architectures.small import (
    SimpleCnn,
    SimpleMlp,
    VggCifar,
    cnn,
    fit_cnn,
    fit_simple_cnn,
    fit_simple_mlp,
    fit_vgg_cifar,
)
from geomerge.networks.architectures.stacks import LinearStack, fit_stack
from geomerge.networks.architectures.transformer import VisionTransformer, fit_transformer
from geomerge.networks.architectures.zoo import RESNETS, VGGS, fit_resnet, fit_vgg, resnet, vgg

__all__ = ["KNOWN", "NAMED", "Known", "create_network", "is_factory", "known_as", "plain_name"]

Shape: TypeAlias = tuple[int, ...]


class Known(NamedTuple):
    """A named architecture.

    Attributes:
        create: Function of an input shape and a number of classes that makes an untrained network;
            it takes ``between``, the name of an activation, if ``activated``.
        fit: Function that makes an empty network for weights with this architecture's names and
            returns None for others; it takes ``between`` as well.
        takes: Description of valid inputs.
        accepts: Function of an input shape that returns whether it is valid.
        recognised: Whether the weights alone determine this architecture.
        assumed: Assumption where the weights are ambiguous; empty if they are not.
        activated: Whether names can include an activation, as in ``mlp:tanh``.
    """

    create: Callable[..., nn.Module]
    fit: Callable[..., nn.Module | None]
    takes: str = "inputs of any shape"
    accepts: Callable[[Shape], bool] = lambda shape: True
    recognised: bool = True
    assumed: str = ""
    activated: bool = False


def create_network(
    architecture: str, input_shape: tuple[int, ...], classes: int, seed: int
) -> nn.Module:
    """Make an untrained network.

    Args:
        architecture: One of :data:`NAMED`, with an activation where possible (``mlp:tanh``), or
            ``module:factory`` for a callable without arguments that returns an ``nn.Module``.
        input_shape: Shape of one input, used for named architectures.
        classes: Number of outputs, used for named architectures.
        seed: Seed of the initial weights; the state of the global generator is preserved.

    Returns:
        The network in float32.

    Raises:
        OptionError: If the name is unknown or does not fit the inputs.
    """
    factory = is_factory(architecture)
    known, own = (None, {}) if factory else known_as(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if known is None:
            return network_from_factory(architecture)
        if not known.accepts(tuple(input_shape)):
            raise OptionError(
                f"{architecture} takes {known.takes}, the task gives inputs of shape "
                f"{tuple(input_shape)}; use `arch` mlp or another task"
            )
        return known.create(tuple(input_shape), classes, **own)


def is_factory(architecture: str) -> bool:
    """Return whether a text is ``module:factory`` rather than a name with an activation."""
    name, colon, own = architecture.partition(":")
    if not colon or name not in KNOWN:
        return bool(colon)
    if KNOWN[name].activated and own in ACTIVATIONS:
        return False
    return PathFinder.find_spec(name, [os.getcwd(), *sys.path]) is not None


def known_as(architecture: str) -> tuple[Known, dict[str, str]]:
    """Return the architecture of a name, and keyword arguments with its activation, if any.

    Args:
        architecture: One of :data:`NAMED`, with an activation or without.

    Raises:
        OptionError: If there is no such architecture or activation.
    """
    name, own = split_activation(architecture)
    if name not in KNOWN:
        raise OptionError(
            f"unknown architecture {name!r}{did_you_mean(name, NAMED)} (or module:factory)"
        )
    known = KNOWN[name]
    if not known.activated and ":" in architecture:
        raise OptionError(
            f"{name} has activations of its own, got {architecture!r}; leave :{own} out, or give "
            "module:factory"
        )
    return known, {"between": check_activation(own)} if known.activated else {}


def plain_name(architecture: str) -> str:
    """Return a name without a default activation, such as ``mlp`` for ``mlp:relu``."""
    name, own = split_activation(architecture)
    return name if own == USUAL and not is_factory(architecture) else architecture


def _stack(*hidden: int) -> Known:
    def create(shape: Shape, classes: int, between: str = USUAL) -> nn.Module:
        sizes = [torch.Size(shape).numel(), *hidden, classes]
        names = [f"layers.{i}" for i in range(len(sizes) - 1)]
        return LinearStack(names, sizes, [True] * len(names), between)

    return Known(create, fit_stack, assumed="ReLU between its layers", activated=True)


def _square(least: int, multiple: int = 1) -> Callable[[Shape], bool]:
    return lambda shape: (
        len(shape) == 3 and shape[1] == shape[2] >= least and shape[1] % multiple == 0
    )


def _vgg(name: str) -> Known:
    return Known(
        lambda shape, classes: vgg(name, classes),
        partial(fit_vgg, name),
        "colour images of at least 32 pixels",
        lambda shape: len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= 32,
    )


def _resnet(name: str, *, small: bool = False, groups: bool = False) -> Known:
    return Known(
        lambda shape, classes: resnet(name, shape[0], classes, small=small, groups=groups),
        partial(fit_resnet, name, small=small, groups=groups),
        "images",
        lambda shape: len(shape) == 3,
        recognised=not groups,  # weights do not determine the number of groups
        assumed="stride 1 without pooling after its first convolution" if small else "",
    )


# Ordered: weights are given the first name that fits.
KNOWN: dict[str, Known] = {
    "simple-mlp": Known(
        lambda shape, classes, between=USUAL: SimpleMlp(
            [torch.Size(shape).numel(), 512, classes], between
        ),
        fit_simple_mlp,
        assumed="ReLU between its layers",
        activated=True,
    ),
    "mlp": _stack(400, 400),
    "lenet-300-100": _stack(300, 100),
    "cnn": Known(
        lambda shape, classes, between=USUAL: cnn(shape[0], shape[1], classes, between=between),
        fit_cnn,
        "square images of at least 4 pixels",
        _square(4),
        assumed="ReLU with pooling of 2 x 2 pixels after its convolutions",
        activated=True,
    ),
    "simple-cnn": Known(
        lambda shape, classes: SimpleCnn(shape[0], classes),
        fit_simple_cnn,
        "square images of at least 14 pixels",
        _square(14),
    ),
    "vit-cifar": Known(
        lambda shape, classes: VisionTransformer(shape[0], (shape[1] // 4) ** 2, classes),
        fit_transformer,
        "square images whose side is a multiple of 4",
        _square(4, 4),
        assumed="attention of 4 heads with GELU in its layers",
    ),
    "vgg11-cifar": Known(
        lambda shape, classes: VggCifar(classes),
        fit_vgg_cifar,
        "inputs of shape (3, 32, 32)",
        lambda shape: shape == (3, 32, 32),
    ),
    "resnet18-gn-cifar": _resnet("resnet18", small=True, groups=True),
    **{f"{name}-cifar": _resnet(name, small=True) for name in RESNETS[:5]},
    **{name: _vgg(name) for name in VGGS},
    **{name: _resnet(name) for name in RESNETS},
}
NAMED = tuple(KNOWN)
