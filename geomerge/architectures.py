"""Metadata, weight names or ``module:factory`` -> ``nn.Module``.

A network is rebuilt from the names and shapes of its weights wherever they say enough, so that a
bare state dict needs no specification and keeps its own names.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError, OptionError, did_you_mean, first_line

__all__ = ["NAMED", "call_factory", "create_network", "rebuild_network", "recognise"]

NAMED = ("mlp", "lenet-300-100", "cnn", "vgg11-cifar")
_LONGEST_STACK = 64  # layers; more are no stack that anybody trains
_MOST_TRIES = 10_000  # orders looked at before an order counts as unclear
_HIDDEN = {"mlp": (400, 400), "lenet-300-100": (300, 100)}


class LinearStack(nn.Module):
    """Linear layers with ReLU between them, under any dotted names.

    Args:
        names: The dotted name of each layer, as in the state dict.
        sizes: Units of the input and of each layer, one more than there are names.
        bias: Whether each layer has a bias.
    """

    def __init__(self, names: list[str], sizes: list[int], bias: list[bool]) -> None:
        super().__init__()
        self._order = names
        for name, d_in, d_out, b in zip(names, sizes[:-1], sizes[1:], bias, strict=True):
            *parents, last = name.split(".")
            owner: nn.Module = self
            for parent in parents:
                if not hasattr(owner, parent):
                    owner.add_module(parent, nn.Module())
                owner = owner.get_submodule(parent)
            owner.add_module(last, nn.Linear(d_in, d_out, bias=b))

    def forward(
        self,
        x: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits of a batch; each input is flattened."""
        x = x.flatten(1)
        for i, name in enumerate(self._order):
            x = self.get_submodule(name)(torch.relu(x) if i else x)
        return x


def _cnn(channels: int, side: int, classes: int, widths: tuple[int, int, int]) -> nn.Module:
    first, second, hidden = widths
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (side // 4) ** 2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


class VggCifar(nn.Module):
    """Torchvision's ``vgg11_bn`` features and a classifier 512-1024-1024-10, 32 x 32 images."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg11_bn  # slow to import, and needed only here

        self.features = vgg11_bn().features
        self.classifier = nn.Sequential(
            nn.Linear(512, 1024),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(1024, 10),
        )

    def forward(
        self,
        x: Tensor,  # (B, 3, 32, 32)
    ) -> Tensor:  # (B, 10)
        """Return the logits of a batch of images."""
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in architecture:
            return _from_factory(architecture)
        if architecture in _HIDDEN:
            d_in = int(torch.Size(input_shape).numel())
            sizes = [d_in, *_HIDDEN[architecture], classes]
            names = [f"layers.{i}" for i in range(len(sizes) - 1)]
            return LinearStack(names, sizes, [True] * len(names))
        if architecture == "cnn":
            if len(input_shape) != 3 or input_shape[1] != input_shape[2] or input_shape[1] < 4:
                raise OptionError(
                    f"the cnn takes square images of at least 4 pixels, the task gives inputs of "
                    f"shape {input_shape}; use --arch mlp"
                )
            return _cnn(input_shape[0], input_shape[1], classes, (16, 32, 128))
        if architecture == "vgg11-cifar":
            if input_shape != (3, 32, 32) or classes != 10:
                raise OptionError(
                    f"vgg11-cifar takes inputs (3, 32, 32) in 10 classes, the task gives "
                    f"{input_shape} in {classes}; use --manifold cifar10"
                )
            return VggCifar()
    raise OptionError(
        f"unknown architecture {architecture!r}{did_you_mean(architecture, NAMED)} "
        "(or module:factory)"
    )


def recognise(weights: Mapping[str, Tensor]) -> str | None:
    """Name the architecture that a state dict belongs to, where that is unambiguous.

    Args:
        weights: A state dict.

    Returns:
        ``"mlp"`` for a stack of linear layers, another of :data:`NAMED`, or None.
    """
    if _linear_order(weights) is not None:
        return "mlp"
    if _cnn_shape(weights) is not None:
        return "cnn"
    if weights.get("features.0.weight") is not None and "classifier.6.weight" in weights:
        reference = VggCifar().state_dict()
        if {k: v.shape for k, v in reference.items()} == {k: v.shape for k, v in weights.items()}:
            return "vgg11-cifar"
    return None


def rebuild_network(
    weights: Mapping[str, Tensor], architecture: str | None, source: str
) -> nn.Module:
    """Rebuild a network and load its weights.

    Args:
        weights: A state dict.
        architecture: A name, ``module:factory``, or None to recognise it from the weights.
        source: Where the weights came from, for messages.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        CheckpointError: If the architecture is not recognised or the weights do not fit it.
        OptionError: If the architecture's name is unknown.
    """
    name = architecture or recognise(weights)
    if name is None:
        raise CheckpointError(
            f"the weights of {source} are of no architecture that geomerge recognises (stacks of "
            "Linear layers in a clear order, cnn, vgg11-cifar); say --arch module:factory, a "
            "callable that returns your nn.Module"
        )
    module = _empty(name, weights, source)
    expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    got = {k: tuple(v.shape) for k, v in weights.items()}
    for key in [*expected, *got]:
        if expected.get(key) != got.get(key):
            raise CheckpointError(
                f"{source} does not fit the architecture {name}: expected {key!r} of shape "
                f"{expected.get(key, 'none')}, got {got.get(key, 'none')}; check --arch"
            )
    module.load_state_dict(dict(weights))
    return module.eval().requires_grad_(False)


def import_factory(spec: str) -> Callable[[], Any]:
    """Import the callable named by ``module:factory``, looking in the working folder too.

    Args:
        spec: The module's dotted name, a colon, and the name of a callable in it.

    Returns:
        The callable.

    Raises:
        OptionError: If there is no such module or callable.
    """
    module, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's own code
        raise OptionError(
            f"cannot import {spec!r} ({first_line(error)}); expected module:factory with the "
            "module in the working folder or installed"
        ) from error
    if not callable(found):
        raise OptionError(f"{spec!r} is a {type(found).__name__}, expected a callable; name one")
    factory: Callable[[], Any] = found
    return factory


def call_factory(spec: str) -> Any:
    """Import and call ``module:factory``, the user's own code.

    Raises:
        OptionError: If it cannot be imported or fails without arguments.
    """
    factory = import_factory(spec)
    try:
        return factory()
    except Exception as error:  # whatever the user's code raises
        raise OptionError(
            f"{spec!r} failed ({type(error).__name__}: {first_line(error)}); expected a callable "
            "that works without arguments"
        ) from error


def _from_factory(spec: str) -> nn.Module:
    module = call_factory(spec)
    if not isinstance(module, nn.Module):
        raise OptionError(
            f"{spec!r} returned a {type(module).__name__}, expected an nn.Module; return one"
        )
    return module


def _empty(name: str, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    if ":" in name:
        return _from_factory(name)
    if name in _HIDDEN and (stack := _linear_order(weights)) is not None:
        sizes = [weights[f"{stack[0]}.weight"].shape[1]]
        sizes += [weights[f"{layer}.weight"].shape[0] for layer in stack]
        return LinearStack(stack, sizes, [f"{layer}.bias" in weights for layer in stack])
    if name == "cnn" and (shape := _cnn_shape(weights)) is not None:
        return _cnn(*shape)
    if name == "vgg11-cifar":
        return VggCifar()
    if name in NAMED:
        raise CheckpointError(
            f"the weights of {source} are not those of a {name}; leave --arch out to have them "
            "recognised, or say module:factory"
        )
    raise OptionError(
        f"unknown architecture {name!r}{did_you_mean(name, NAMED)} (or module:factory)"
    )


def _cnn_shape(
    weights: Mapping[str, Tensor],
) -> tuple[int, int, int, tuple[int, int, int]] | None:
    keys = {f"{i}.{kind}" for i in (0, 3, 7, 9) for kind in ("weight", "bias")}
    if set(weights) != keys:
        return None
    conv1, conv2, hidden, out = (weights[f"{i}.weight"] for i in (0, 3, 7, 9))
    if conv1.dim() != 4 or conv2.dim() != 4 or conv1.shape[2:] != (3, 3):
        return None
    cells = hidden.shape[1] // conv2.shape[0]
    side = 4 * round(cells**0.5)
    widths = (conv1.shape[0], conv2.shape[0], hidden.shape[0])
    return conv1.shape[1], side, out.shape[0], widths


def _linear_order(weights: Mapping[str, Tensor]) -> list[str] | None:
    """Return the names of the linear layers from input to output, or None if not clear."""
    layers = [k.removesuffix(".weight") for k in weights if k.endswith(".weight")]
    known = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if not layers or not set(weights) <= known:
        return None
    sizes: dict[str, tuple[int, ...]] = {k: tuple(weights[f"{k}.weight"].shape) for k in layers}
    if any(len(size) != 2 for size in sizes.values()) or len(layers) > _LONGEST_STACK:
        return None
    for layer in layers:
        bias = weights.get(f"{layer}.bias")
        if bias is not None and tuple(bias.shape) != sizes[layer][:1]:
            return None
    ordered = sorted(layers, key=_natural)
    if not _chains(ordered, sizes):
        return _only_chain(layers, sizes)
    # Layers of one shape could be swapped: only numbers in otherwise equal names order them.
    for i, one in enumerate(ordered):
        for other in ordered[:i]:
            if sizes[one] == sizes[other] and re.sub(r"\d+", "", one) != re.sub(r"\d+", "", other):
                return None
    return ordered


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _chains(order: list[str], sizes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(sizes[one][0] == sizes[two][1] for one, two in itertools.pairwise(order))


def _only_chain(layers: list[str], sizes: Mapping[str, tuple[int, ...]]) -> list[str] | None:
    found: list[list[str]] = []
    tries = 0

    def extend(chain: list[str]) -> None:
        nonlocal tries
        tries += 1
        if len(chain) == len(layers):
            found.append(chain)
        for layer in layers:
            fits = not chain or sizes[chain[-1]][0] == sizes[layer][1]
            if len(found) < 2 and tries < _MOST_TRIES and layer not in chain and fits:
                extend([*chain, layer])

    extend([])
    return found[0] if len(found) == 1 and tries < _MOST_TRIES else None
