"""Networks of the benchmarks, as ``module:factory`` names them."""

from __future__ import annotations

from torch import nn

__all__ = ["resnet18_bn", "resnet18_gn"]


def resnet18_bn() -> nn.Module:
    """Return torchvision's ResNet-18 with BatchNorm and 5 classes."""
    from torchvision.models import resnet18

    return resnet18(num_classes=5)


def resnet18_gn() -> nn.Module:
    """Return torchvision's ResNet-18 with GroupNorm (32 groups) and 5 classes."""
    from torchvision.models import resnet18

    return resnet18(num_classes=5, norm_layer=lambda channels: nn.GroupNorm(32, channels))
