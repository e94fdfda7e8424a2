"""Weights -> the network they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from geomerge.errors import CheckpointError, OptionError, did_you_mean
from geomerge.networks.architectures.factory import made_by, network_from_factory
from geomerge.networks.architectures.known import KNOWN, NAMED

__all__ = ["rebuild_network", "recognise", "resize_layers"]


def recognise(weights: Mapping[str, Tensor]) -> str | None:
    """Name the architecture that a state dict belongs to, where that is unambiguous.

    Args:
        weights: A state dict.

    Returns:
        ``"mlp"`` for a stack of linear layers, another of
        :data:`~geomerge.networks.architectures.known.NAMED`, or None.

    Example:
        >>> from torch import nn
        >>> from geomerge.networks.architectures import recognise
        >>> recognise(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).state_dict())
        'mlp'
        >>> recognise(nn.LSTM(4, 4).state_dict()) is None
        True
    """
    told = (name for name, known in KNOWN.items() if known.recognised and _fits(name, weights))
    return next(told, None)


def rebuild_network(
    weights: Mapping[str, Tensor],
    architecture: str | Callable[[], nn.Module] | None,
    source: str,
) -> nn.Module:
    """Rebuild a network and load its weights.

    Args:
        weights: A state dict. Where only the rows of one Linear layer are others than the
            architecture's, that layer is the head, and it is made as large as the weights say. So
            are layers with fewer outputs or inputs, of a network that some units were removed of.
        architecture: A name, ``module:factory``, a callable that returns the module, or None to
            recognise it from the weights.
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
    module = _empty(name, weights, source) if isinstance(name, str) else made_by(name)
    if _other_widths(module, weights):
        resize_layers(module, weights)
    expected, got = _shapes(module.state_dict()), _shapes(weights)
    shown = name if isinstance(name, str) else getattr(name, "__qualname__", repr(name))
    for key in [*expected, *got]:
        if expected.get(key) != got.get(key):
            raise CheckpointError(
                f"{source} does not fit the architecture {shown}: expected {key!r} of shape "
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


def resize_layers(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make Linear, convolution and BatchNorm layers as large as weights have them, empty.

    Layers stay as they are where the weights cannot be theirs: of another kernel, or of a
    convolution in groups that is not depthwise.

    Args:
        module: The network, changed in place.
        weights: Tensors by the names of its state dict.
    """
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(layer, _BatchNorm):
            stored = weights.get(f"{prefix}weight", weights.get(f"{prefix}running_mean"))
            if stored is not None and stored.dim() == 1:
                layer.num_features = len(stored)
                for own in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    _resize(own, stored.shape)
        elif isinstance(layer, (nn.Linear, _ConvNd)):
            stored = weights.get(f"{prefix}weight")
            if stored is not None and _tell_size(layer, stored.shape):
                _resize(layer.weight, stored.shape)
                _resize(layer.bias, stored.shape[:1])


def _tell_size(layer: nn.Linear | _ConvNd, shape: torch.Size) -> bool:
    """Set the sizes that a layer knows of itself to those of a weight, if that can be its own."""
    own = layer.weight.shape
    if len(shape) != len(own) or shape[2:] != own[2:] or 0 in shape:
        return False
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif layer.groups == 1 and not layer.transposed:
        layer.out_channels, layer.in_channels = shape[:2]
    elif layer.groups == layer.in_channels == layer.out_channels and shape[1] == 1:
        layer.out_channels = layer.in_channels = layer.groups = shape[0]
    else:
        return False
    return True


def _resize(tensor: Tensor | None, shape: torch.Size) -> None:
    if tensor is not None and tensor.shape != shape:
        tensor.data = tensor.new_empty(shape)


def _other_widths(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Return whether weights can be the module's with another head or without some units.

    Without units, layers have fewer outputs and others fewer inputs. The head, one Linear layer,
    may have more outputs too; nothing else grows.
    """
    own, got = _shapes(module.state_dict()), _shapes(weights)
    if set(own) != set(got):
        return False
    changed = {key.rpartition(".")[0] for key in own if own[key] != got[key]}
    layers = {name: module.get_submodule(name) for name in changed}
    linear = {_weight(name) for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    keys = linear | {_weight(name) for name, layer in layers.items() if isinstance(layer, _ConvNd)}
    if not keys <= set(own):  # weights made from others
        return False
    more = {key for key in keys if own[key][0] < got[key][0]}
    fewer = {key for key in keys if own[key][0] > got[key][0]}
    read = {key for key in keys if own[key][1:] > got[key][1:]}
    if any(own[key][1:] < got[key][1:] for key in keys) or not more <= linear or len(more) > 1:
        return False
    return bool(fewer and read) or (len(changed) == 1 and bool(linear) and not read)


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
