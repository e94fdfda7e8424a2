"""Networks of the benchmarks, as ``module:factory`` names them."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["resnet18_bn", "resnet18_gn", "resnet20", "vgg11", "vit_b_16"]


def resnet18_bn() -> nn.Module:
    """Return torchvision's ResNet-18 with BatchNorm and 5 classes."""
    from torchvision.models import resnet18

    return resnet18(num_classes=5)


def resnet18_gn() -> nn.Module:
    """Return torchvision's ResNet-18 with GroupNorm (32 groups) and 5 classes."""
    from torchvision.models import resnet18

    return resnet18(num_classes=5, norm_layer=lambda channels: nn.GroupNorm(32, channels))


def resnet20(classes: int = 5, width: int = 1) -> nn.Module:
    """Return the ResNet20 of He et al. 2016 for images of 32 x 32, 1x1 convolutions as shortcuts.

    Args:
        classes: Number of classes.
        width: Factor of the channels 16, 32 and 64.
    """
    return _ResNet20(classes, width)


def vgg11(classes: int = 10, width: float = 0.25) -> nn.Module:
    """Return a VGG11 with BatchNorm for images of 32 x 32, one Linear layer behind its features.

    Args:
        classes: Number of classes.
        width: Factor of the channels 64, 128, 256 and 512.
    """
    layers: list[nn.Module] = []
    before = 3
    for block in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for channels in block:
            after = int(width * channels)
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers.append(nn.ReLU())
            before = after
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, classes))


def vit_b_16() -> nn.Module:
    """Return torchvision's ViT-B/16 for images of 224 x 224 and 10 classes, with a random head."""
    from torchvision.models import vit_b_16

    module = vit_b_16(num_classes=10)
    nn.init.normal_(module.heads.head.weight, std=0.02)  # torchvision's is zero, and so are outputs
    return module


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride > 1:
            shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + shortcut)


class _ResNet20(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = [16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        before = widths[0]
        for number, after in enumerate(widths, 1):
            stride = 1 if number == 1 else 2
            blocks = [_Block(before, after, stride), _Block(after, after, 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks, _Block(after, after, 1)))
            before = after
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for name in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(name)(x)
        return self.fc(x.mean(dim=(2, 3)))
