"""Explanation of a module's failure on a batch by the number, shape and type of its inputs."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from geomerge.errors import first_line
from geomerge.networks.batches import Batch, leaves, pass_to, shape_of

__all__ = ["why_refused"]

_NAME_TASK = "name the task it was trained for"


def why_refused(module: nn.Module, x: Batch, source: str, error: Exception) -> str:
    """Return the reason why a module fails on a batch, as a sentence with the remedy.

    Args:
        module: Module that fails.
        x: Batch on which it fails.
        source: Name of the inputs' task for the sentence.
        error: Error raised by the module.
    """
    given = len(leaves(x))
    needed, most = _inputs_of(module)
    if needed and not (len(needed) <= given <= most):
        return (
            f"the network takes {_listed(needed)} and {source} has {given}; give a task "
            "whose inputs are a tuple or a mapping of as many tensors"
        )
    expected = _what_inputs(module, x)
    if expected is not None:
        takes, remedy = expected
        return f"the network takes {takes}, and {source} has {_described(x)}; {remedy}"
    return (
        f"the network cannot take the inputs of {source}, of shape {shape_of(x)} "
        f"({first_line(error)}); name the task it was trained for"
    )


def _described(x: Batch) -> str:
    kind = "inputs" if isinstance(x, Tensor) and x.is_floating_point() else "whole numbers"
    return f"{kind} of shape {shape_of(x)}"


def _inputs_of(module: nn.Module) -> tuple[list[str], float]:
    """Return the names of a module's required inputs, and its largest number of inputs."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = {p.kind for p in parameters}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return [p.name for p in parameters if p.default is p.empty and p.kind < 2], float("inf")
    return [p.name for p in parameters if p.default is p.empty], len(parameters)


def _listed(names: list[str]) -> str:
    word = {1: "one input", 2: "two inputs", 3: "three inputs", 4: "four inputs"}
    return f"{word.get(len(names), f'{len(names)} inputs')} ({', '.join(names)})"


def _what_inputs(module: nn.Module, x: Batch) -> tuple[str, str] | None:
    """Return a description of a module's valid inputs and a remedy; None if unclear.

    Args:
        module: Module.
        x: Batch on which it fails.
    """
    refusing: list[tuple[nn.Module, Tensor]] = []
    known = (nn.Linear, _ConvNd, nn.Embedding)

    def before(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            refusing.append((layer, given[0]))

    def after(layer: nn.Module, given: Any, output: Any) -> None:
        refusing.clear()

    layers = [layer for layer in module.modules() if isinstance(layer, known)]
    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        with torch.no_grad():
            pass_to(module, x)
    except Exception:  # the failure in question
        return _expected(*refusing[-1], x) if refusing else None
    finally:
        for handle in handles:
            handle.remove()
    return None


def _expected(layer: nn.Module, given: Tensor, x: Batch) -> tuple[str, str] | None:
    whole = not given.is_floating_point()
    if isinstance(layer, nn.Embedding):
        if given.is_floating_point():
            return "whole numbers such as tokens", "give them as integers"
        count = layer.num_embeddings
        return f"numbers under {count} (its embedding has as many rows)", (
            f"the largest is {int(given.max())}: number them as the network was trained"
        )
    if whole:
        return "floats", "convert them"
    image = x if isinstance(x, Tensor) and x.dim() == 4 else None
    if isinstance(layer, _ConvNd):
        if given.dim() < layer.weight.dim() - 1:
            return f"inputs of {layer.weight.dim() - 1} dimensions, with channels", _NAME_TASK
        channels = layer.in_channels
        if image is not None and given is image and channels in (1, 3):
            return f"images of {_counted(channels)}", f"give `channels` {channels}"
        return f"inputs of {_counted(channels)}", _NAME_TASK
    assert isinstance(layer, nn.Linear)
    if given.shape[-1] == layer.in_features:
        return None
    if image is not None and given.dim() == 2:
        side = math.isqrt(layer.in_features // image.shape[1])
        if side * side * image.shape[1] == layer.in_features and _flat(image, given):
            return f"images of {side} x {side} pixels", f"give `image_size` {side}"
        grey = math.isqrt(layer.in_features)
        if _flat(image, given) and grey * grey == layer.in_features == image[0, 0].numel():
            return f"images of 1 channel and {grey} x {grey} pixels", "give `channels` 1"
        if not _flat(image, given):
            return (
                f"images of another size (its first Linear layer has {layer.in_features} inputs, "
                f"and gets {given.shape[-1]})",
                "give the size it was trained with as `image_size`",
            )
    return f"{layer.in_features} numbers", _NAME_TASK


def _flat(image: Tensor, given: Tensor) -> bool:
    return given.shape[-1] == image[0].numel()


def _counted(channels: int) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''}"
