"""Torchvision's VGG and ResNet networks with any number of classes and channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

__all__ = ["RESNETS", "VGGS", "fit_resnet", "fit_vgg", "resnet", "vgg"]

VGGS = tuple(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn"))
RESNETS = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
_BLOCKS = {"18": 2, "34": 6, "50": 6, "101": 23, "152": 36}  # of the third stage, by depth
_CELLS = 7 * 7  # positions of each channel in the inputs of a VGG's classifier
_GROUPS = 32  # assumed number of groups of a GroupNorm, which weights do not determine


def vgg(name: str, classes: int) -> nn.Module:
    """Make one of :data:`VGGS`, untrained."""
    return _model(name, num_classes=classes)


def fit_vgg(name: str, weights: Mapping[str, Tensor]) -> nn.Module | None:
    """Return an empty network for weights with a VGG's names, or None."""
    first, head = weights.get("classifier.0.weight"), weights.get("classifier.6.weight")
    if first is None or head is None or "features.0.weight" not in weights:
        return None
    if first.dim() != 2 or first.shape[1] % _CELLS:
        return None
    return vgg(name, len(head))


def resnet(
    name: str, channels: int, classes: int, *, small: bool = False, groups: bool = False
) -> nn.Module:
    """Make one of :data:`RESNETS`, untrained.

    Args:
        name: Name of the architecture.
        channels: Number of channels of the images.
        classes: Number of outputs.
        small: Whether images have about 32 pixels: a 3 x 3 stem of stride 1, no pooling after it.
        groups: Whether GroupNorm of 32 groups replaces BatchNorm.
    """
    norm = {"norm_layer": partial(nn.GroupNorm, _GROUPS)} if groups else {}
    module = _model(name, num_classes=classes, **norm)
    if small:
        module.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        module.maxpool = nn.Identity()
    elif channels != 3:
        module.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return module


def fit_resnet(
    name: str, weights: Mapping[str, Tensor], *, small: bool = False, groups: bool = False
) -> nn.Module | None:
    """Return an empty network for weights with a ResNet's names, or None; see :func:`resnet`."""
    stem, head = weights.get("conv1.weight"), weights.get("fc.weight")
    if stem is None or head is None or stem.dim() != 4 or "layer1.0.conv1.weight" not in weights:
        return None
    if (stem.shape[2] == 3) != small or ("bn1.running_mean" in weights) == groups:
        return None
    depth = re.findall(r"\d+", name)[0]
    last, bottleneck = f"layer3.{_BLOCKS[depth] - 1}.conv1.weight", "layer1.0.conv3.weight"
    if last not in weights or (bottleneck in weights) != (int(depth) >= 50):
        return None
    return resnet(name, stem.shape[1], len(head), small=small, groups=groups)


def _model(name: str, **options: Any) -> nn.Module:
    from torchvision.models import get_model  # slow to import, used only here

    module: nn.Module = get_model(name, weights=None, **options)
    return module
