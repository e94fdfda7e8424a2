"""Input shapes of a module, inferred from the first layer that fails on a batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from geomerge.networks.batches import Batch, pass_to

__all__ = ["what_inputs"]

_NAME_TASK = "name the task it was trained for"


def what_inputs(module: nn.Module, x: Batch) -> tuple[str, str] | None:
    """Return what inputs a module takes that refuses a batch, and what to do; None if unclear.

    Args:
        module: The module.
        x: Batch that it refuses.
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
    except Exception:  # the refusal that is asked about
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
            return f"images of {_counted(channels)}", f"say `channels` {channels}"
        return f"inputs of {_counted(channels)}", _NAME_TASK
    assert isinstance(layer, nn.Linear)
    if given.shape[-1] == layer.in_features:
        return None
    if image is not None and given.dim() == 2:
        side = math.isqrt(layer.in_features // image.shape[1])
        if side * side * image.shape[1] == layer.in_features and _flat(image, given):
            return f"images of {side} x {side} pixels", f"say `image_size` {side}"
        grey = math.isqrt(layer.in_features)
        if _flat(image, given) and grey * grey == layer.in_features == image[0, 0].numel():
            return f"images of 1 channel and {grey} x {grey} pixels", "say `channels` 1"
        if not _flat(image, given):
            return (
                f"images of another size (its first Linear layer has {layer.in_features} inputs, "
                f"and gets {given.shape[-1]})",
                "say the size it was trained with by `image_size`",
            )
    return f"{layer.in_features} numbers", _NAME_TASK


def _flat(image: Tensor, given: Tensor) -> bool:
    return given.shape[-1] == image[0].numel()


def _counted(channels: int) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''}"
