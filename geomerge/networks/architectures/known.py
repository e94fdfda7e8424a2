"""The architectures that have names: how each is made, and how weights of it look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from geomerge.errors import OptionError, did_you_mean
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

__all__ = ["KNOWN", "NAMED", "Known", "create_network"]

Shape: TypeAlias = tuple[int, ...]


class Known(NamedTuple):
    """An architecture.

    Attributes:
        create: Makes an untrained network for inputs of a shape and a number of classes.
        fit: Makes an empty network for weights named like this architecture's, else None.
        takes: The inputs it takes, as a sentence says it.
        accepts: Whether it takes inputs of a shape.
        recognised: Whether weights alone say that they are this architecture's.
    """

    create: Callable[[Shape, int], nn.Module]
    fit: Callable[[Mapping[str, Tensor]], nn.Module | None]
    takes: str = "inputs of any shape"
    accepts: Callable[[Shape], bool] = lambda shape: True
    recognised: bool = True


def create_network(
    architecture: str, input_shape: tuple[int, ...], classes: int, seed: int
) -> nn.Module:
    """Make an untrained network.

    Args:
        architecture: One of :data:`NAMED`, or ``module:factory`` for a callable that takes no
            argument and returns an ``nn.Module``.
        input_shape: Shape of one input, for the named ones.
        classes: Number of outputs, for the named ones.
        seed: Seed of the initial weights; the global generator is left as it was.

    Returns:
        The network in float32.

    Raises:
        OptionError: If the name is unknown or does not fit the inputs.
    """
    if ":" not in architecture and architecture not in KNOWN:
        raise OptionError(
            f"unknown architecture {architecture!r}{did_you_mean(architecture, NAMED)} "
            "(or module:factory)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in architecture:
            return network_from_factory(architecture)
        known = KNOWN[architecture]
        if not known.accepts(tuple(input_shape)):
            raise OptionError(
                f"{architecture} takes {known.takes}, the task gives inputs of shape "
                f"{tuple(input_shape)}; use --arch mlp or another task"
            )
        return known.create(tuple(input_shape), classes)


def _stack(*hidden: int) -> Known:
    def create(shape: Shape, classes: int) -> nn.Module:
        sizes = [torch.Size(shape).numel(), *hidden, classes]
        names = [f"layers.{i}" for i in range(len(sizes) - 1)]
        return LinearStack(names, sizes, [True] * len(names))

    return Known(create, fit_stack)


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
        recognised=not groups,  # weights do not tell how many groups
    )


# Weights get the first name that fits.
KNOWN: dict[str, Known] = {
    "simple-mlp": Known(
        lambda shape, classes: SimpleMlp([torch.Size(shape).numel(), 512, classes]), fit_simple_mlp
    ),
    "mlp": _stack(400, 400),
    "lenet-300-100": _stack(300, 100),
    "cnn": Known(
        lambda shape, classes: cnn(shape[0], shape[1], classes),
        fit_cnn,
        "square images of at least 4 pixels",
        _square(4),
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
