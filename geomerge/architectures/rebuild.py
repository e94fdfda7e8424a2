"""Weights -> the network they belong to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from geomerge.architectures.factory import network_from_factory
from geomerge.architectures.known import KNOWN, NAMED
from geomerge.errors import CheckpointError, OptionError, did_you_mean

__all__ = ["rebuild_network", "recognise"]


def recognise(weights: Mapping[str, Tensor]) -> str | None:
    """Name the architecture that a state dict belongs to, where that is unambiguous.

    Args:
        weights: A state dict.

    Returns:
        ``"mlp"`` for a stack of linear layers, another of
        :data:`~geomerge.architectures.known.NAMED`, or None.
    """
    told = (name for name, known in KNOWN.items() if known.recognised and _fits(name, weights))
    return next(told, None)


def rebuild_network(
    weights: Mapping[str, Tensor], architecture: str | None, source: str
) -> nn.Module:
    """Rebuild a network and load its weights.

    Args:
        weights: A state dict. Where only the rows of one Linear layer are others than the
            architecture's, that layer is the head, and it is made as large as the weights say.
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
        for candidate, known in KNOWN.items():
            if not known.recognised and _fits(candidate, weights):
                raise CheckpointError(
                    f"the weights of {source} may be of a {candidate}, but weights do not tell all "
                    f"of it (groups of GroupNorm); say --arch {candidate} or module:factory"
                )
        raise CheckpointError(
            f"the weights of {source} are of no architecture that geomerge recognises (stacks of "
            "Linear layers in a clear order, Avalanche's SimpleMLP and SimpleCNN, torchvision's "
            "VGG and ResNet, and those that geomerge train makes); say --arch module:factory, a "
            "callable that returns your nn.Module"
        )
    module = _empty(name, weights, source)
    _fit_head(module, weights)
    expected, got = _shapes(module.state_dict()), _shapes(weights)
    for key in [*expected, *got]:
        if expected.get(key) != got.get(key):
            raise CheckpointError(
                f"{source} does not fit the architecture {name}: expected {key!r} of shape "
                f"{expected.get(key, 'none')}, got {got.get(key, 'none')}; check --arch"
            )
    module.load_state_dict(dict(weights))
    return module.eval().requires_grad_(False)


def _fits(name: str, weights: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):  # shapes only, no memory
        module = KNOWN[name].fit(weights)
    return module is not None and _shapes(module.state_dict()) == _shapes(weights)


def _empty(name: str, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    if ":" in name:
        return network_from_factory(name)
    if name not in KNOWN:
        raise OptionError(
            f"unknown architecture {name!r}{did_you_mean(name, NAMED)} (or module:factory)"
        )
    module = KNOWN[name].fit(weights)
    if module is None:
        raise CheckpointError(
            f"the weights of {source} are not those of a {name}; leave --arch out to have them "
            "recognised, or say module:factory"
        )
    return module


def _fit_head(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a Linear layer as many rows as stored, if that is all that does not fit."""
    own = _shapes(module.state_dict())
    got = _shapes(weights)
    owners = {key.rpartition(".")[0] for key in own if own[key] != got.get(key)}
    if set(own) != set(got) or len(owners) != 1:
        return
    name = owners.pop()
    head = module.get_submodule(name)
    stored = weights.get(f"{name}.weight" if name else "weight")
    if isinstance(head, nn.Linear) and stored is not None and stored.dim() == 2:
        head.out_features = len(stored)
        head.weight = nn.Parameter(head.weight.new_empty(len(stored), head.in_features))
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias.new_empty(len(stored)))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
