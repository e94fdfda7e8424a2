"""Rebuilding of networks from their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from geomerge.errors import CheckpointError, warn_assumption
from geomerge.networks.architectures.factory import made_by, network_from_factory
from geomerge.networks.architectures.fitting import (
    check_fit,
    fit_names,
    listed,
    plain_counters,
    what_weights_are,
)
from geomerge.networks.architectures.known import KNOWN, is_factory, known_as

__all__ = ["assumption", "rebuild_network", "recognise", "resize_layers"]

_SHOWN = 3  # tensors with a wrong shape that a message lists


def recognise(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of a state dict's architecture if it is unambiguous.

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


def assumption(weights: Mapping[str, Tensor], source: str) -> str | None:
    """Return the assumption for rebuilding a network from its weights alone.

    Args:
        weights: State dict without a recorded architecture.
        source: Name of the weights for the sentence.

    Returns:
        A sentence; None if no assumption is necessary, or no known architecture fits.
    """
    name = recognise(weights) or recognise(_without_prefix(weights))
    if name is None or not KNOWN[name].assumed:
        return None
    known = KNOWN[name]
    if known.activated and len(weights) <= 2:  # one layer has no activation
        return None
    instead = f"`arch` such as {name}:tanh" if known.activated else "`arch` as module:factory"
    return (
        f"{Path(source).name} does not record its architecture: recognised by its weights as "
        f"{name}, and {known.assumed} was assumed; say {instead} if it has another"
    )


def rebuild_network(
    weights: Mapping[str, Tensor],
    architecture: str | Callable[[], nn.Module] | None,
    source: str,
) -> nn.Module:
    """Rebuild a network and load its weights.

    Args:
        weights: State dict. Sizes of the architecture are adapted to it: the rows of one Linear
            layer, the head; layers with fewer outputs or inputs, after a removal of units; and rows
            of embeddings, for an extended vocabulary.
        architecture: A name, with an activation where possible (``mlp:tanh``), ``module:factory``,
            a callable that returns the module, or None to recognise it from the weights, with an
            :class:`~geomerge.errors.AssumptionWarning` if they are ambiguous.
        source: Name of the weights' source, for error messages.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        CheckpointError: If the architecture is not recognised or the weights do not fit it.
        OptionError: If the architecture's name is unknown.
    """
    odd = None if architecture else what_weights_are(weights, source)
    if odd is not None:
        raise CheckpointError(odd)
    name = architecture or recognise(weights)
    if name is None or (isinstance(name, str) and not _can_be(name, weights)):
        weights = _without_prefix(weights)
        name = name or recognise(weights)
    if name is None:
        raise CheckpointError(_unknown(weights, source))
    assumed = assumption(weights, source) if architecture is None else None
    if assumed is not None:
        warn_assumption(assumed)
    module = _empty(name, weights, source) if isinstance(name, str) else made_by(name)
    shown = name if isinstance(name, str) else getattr(name, "__qualname__", repr(name))
    fit = fit_names(module, weights)
    other = _other_widths(module, fit.tensors) or _other_vocabulary(module, fit.tensors)
    if not fit.missing and not fit.extra and other:
        resize_layers(module, fit.tensors)
    expected = _shapes(module.state_dict())
    apart = [k for k, v in fit.tensors.items() if expected.get(k, v.shape) != tuple(v.shape)]
    if apart:
        told = [f"{k!r} of shape {expected[k]}, got {tuple(fit.tensors[k].shape)}" for k in apart]
        more = f", and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
        lacks = f", and it lacks {listed(fit.missing)}" if fit.missing else ""
        extra = f", and has {listed(fit.extra)} beside them" if fit.extra else ""
        odd = what_weights_are(weights, source)
        raise CheckpointError(
            odd
            or f"{source} does not fit the architecture {shown}: expected "
            f"{'; '.join(told[:_SHOWN])}{more}{lacks}{extra}; check `arch`"
        )
    check_fit(fit, source, shown)
    module.load_state_dict(fit.tensors, strict=False)
    if all(p.requires_grad for p in module.parameters()):
        module.requires_grad_(False)  # a factory with frozen parameters keeps them
    return module.eval()


def _unknown(weights: Mapping[str, Tensor], source: str) -> str:
    """Return the error message for weights of an unrecognised architecture."""
    for candidate, known in KNOWN.items():
        if not known.recognised and _fits(candidate, weights):
            return (
                f"the weights of {source} may be of a {candidate}, but weights do not tell all of "
                f"it (groups of GroupNorm); give `arch` {candidate} or module:factory"
            )
    return (
        f"the weights of {source} are of no architecture that geomerge recognises (stacks of "
        "Linear layers in a clear order, Avalanche's SimpleMLP and SimpleCNN, torchvision's VGG "
        "and ResNet, and those that geomerge train makes); give `arch` module:factory, a callable "
        "that returns your nn.Module"
    )


def _can_be(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Return whether weights have the names of a named architecture; true for a factory."""
    if is_factory(name):
        return True
    known, own = known_as(name)
    with torch.device("meta"):  # names only, no memory
        return known.fit(weights, **own) is not None


def _fits(name: str, weights: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):  # shapes only, no memory
        module = KNOWN[name].fit(weights)
    if module is None:
        return False
    own, got = (plain_counters(tensors) for tensors in (module.state_dict(), weights))
    return _shapes(own) == _shapes(got)


def _without_prefix(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights without the first part of their names if all share it."""
    firsts = {name.partition(".")[0] for name in plain_counters(weights)}
    if len(firsts) != 1 or not all("." in name for name in plain_counters(weights)):
        return weights
    first = f"{firsts.pop()}."
    return {name.removeprefix(first): value for name, value in weights.items()}


def _empty(name: str, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    if is_factory(name):
        return network_from_factory(name)
    known, own = known_as(name)
    module = known.fit(weights, **own)
    if module is None:
        raise CheckpointError(
            f"the weights of {source} are not those of a {name}; leave `arch` out to have them "
            "recognised, or give module:factory"
        )
    return module


def resize_layers(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Resize Linear, convolution and BatchNorm layers to fit weights, without values.

    Layers whose weights differ otherwise are unchanged: those with another kernel size, and grouped
    convolutions that are not depthwise.

    Args:
        module: Network, changed in place.
        weights: Tensors by their names in the state dict.
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
        elif isinstance(layer, nn.Embedding):
            stored = weights.get(f"{prefix}weight")
            if stored is not None and stored.shape[1:] == layer.weight.shape[1:]:
                layer.num_embeddings = len(stored)
                _resize(layer.weight, stored.shape)


def _tell_size(layer: nn.Linear | _ConvNd, shape: torch.Size) -> bool:
    """Set the sizes stored in a layer to those of a weight, if they fit."""
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
    """Return whether weights fit the module with another head or without some units.

    Removal of units reduces outputs of some layers and inputs of others. Only the head, one Linear
    layer, can have more outputs.
    """
    got = _shapes(weights)
    own = {name: shape for name, shape in _shapes(module.state_dict()).items() if name in got}
    changed = {key.rpartition(".")[0] for key in own if own[key] != got[key]}
    layers = {name: module.get_submodule(name) for name in changed}
    linear = {_weight(name) for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    keys = linear | {_weight(name) for name, layer in layers.items() if isinstance(layer, _ConvNd)}
    if not keys <= set(own):  # weights computed from others
        return False
    more = {key for key in keys if own[key][0] < got[key][0]}
    fewer = {key for key in keys if own[key][0] > got[key][0]}
    read = {key for key in keys if own[key][1:] > got[key][1:]}
    if not more <= linear or any(own[key][2:] != got[key][2:] for key in keys):
        return False
    if len(more) > 1:  # separate heads with several layers each
        chain = [key for key in own if key in more]
        grown = [(own[key][0], got[key][0]) for key in chain[:-1]]
        return grown == [(own[key][1], got[key][1]) for key in chain[1:]] and keys == more
    if any(own[key][1:] < got[key][1:] for key in keys):
        return False
    return bool(fewer and read) or (len(changed) == 1 and bool(linear) and not read)


def _other_vocabulary(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Return whether weights differ from a module's only in the size of one vocabulary.

    This concerns the embeddings and output layers of the same size.
    """
    own, got = _shapes(module.state_dict()), _shapes(weights)
    changed = {key for key in own if key in got and own[key] != got[key]}
    rows = {
        (own[key][:1], got[key][:1]) if own[key][1:] == got[key][1:] else None for key in changed
    }
    layers = [module.get_submodule(key.rpartition(".")[0]) for key in changed]
    known = all(isinstance(layer, (nn.Embedding, nn.Linear)) for layer in layers)
    return known and len(rows) == 1 and any(isinstance(layer, nn.Embedding) for layer in layers)


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
