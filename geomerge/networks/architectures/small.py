"""Small networks: geomerge's own, and Avalanche's without importing it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from torch import Tensor, nn

from geomerge.networks.architectures.activations import USUAL, activation

__all__ = [
    "SimpleCnn",
    "SimpleMlp",
    "VggCifar",
    "cnn",
    "fit_cnn",
    "fit_simple_cnn",
    "fit_simple_mlp",
    "fit_vgg_cifar",
]


def cnn(
    channels: int,
    side: int,
    classes: int,
    widths: tuple[int, int, int] = (16, 32, 128),
    between: str = USUAL,
) -> nn.Module:
    """Make a network of two convolutions and a hidden layer for square images."""
    first, second, hidden = widths
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        activation(between),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        activation(between),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (side // 4) ** 2, hidden),
        activation(between),
        nn.Linear(hidden, classes),
    )


def fit_cnn(weights: Mapping[str, Tensor], between: str = USUAL) -> nn.Module | None:
    """Return an empty :func:`cnn` for weights with its names, or None."""
    keys = {f"{i}.{kind}" for i in (0, 3, 7, 9) for kind in ("weight", "bias")}
    if set(weights) != keys:
        return None
    conv1, conv2, hidden, out = (weights[f"{i}.weight"] for i in (0, 3, 7, 9))
    if conv1.dim() != 4 or conv2.dim() != 4 or conv1.shape[2:] != (3, 3):
        return None
    cells = hidden.shape[1] // conv2.shape[0]
    widths = (conv1.shape[0], conv2.shape[0], hidden.shape[0])
    return cnn(conv1.shape[1], 4 * round(cells**0.5), out.shape[0], widths, between)


class VggCifar(nn.Module):
    """Torchvision's ``vgg11_bn`` features with a classifier 512-1024-1024 for 32 x 32 images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        from torchvision.models import vgg11_bn  # slow to import, used only here

        self.features = vgg11_bn().features
        self.classifier = nn.Sequential(
            nn.Linear(512, 1024),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(1024, classes),
        )

    def forward(
        self,
        x: Tensor,  # (B, 3, 32, 32)
    ) -> Tensor:  # (B, m)
        """Return the logits of a batch of images."""
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


def fit_vgg_cifar(weights: Mapping[str, Tensor]) -> VggCifar | None:
    """Return an empty :class:`VggCifar` for weights with its head's names, or None."""
    head = weights.get("classifier.6.weight")
    return None if head is None else VggCifar(len(head))


class SimpleMlp(nn.Module):
    """Avalanche's ``SimpleMLP``: hidden layers of one width, dropout after each.

    Args:
        sizes: Number of units of the input, the hidden layers and the output.
        between: Name of the activation.
    """

    def __init__(self, sizes: list[int], between: str = USUAL) -> None:
        super().__init__()
        first, *more = [
            (nn.Linear(d_in, d_out), activation(between), nn.Dropout(0.5))
            for d_in, d_out in itertools.pairwise(sizes[:-1])
        ]
        self.features = nn.Sequential(*first, *(nn.Sequential(*layer) for layer in more))
        self.classifier = nn.Linear(sizes[-2], sizes[-1])

    def forward(
        self,
        x: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits of a batch; each input is flattened."""
        out: Tensor = self.classifier(self.features(x.flatten(1)))
        return out


def fit_simple_mlp(weights: Mapping[str, Tensor], between: str = USUAL) -> SimpleMlp | None:
    """Return an empty :class:`SimpleMlp` for weights with its names, or None."""
    layers = ["features.0", *(f"features.{i}.0" for i in range(3, len(weights) // 2 + 1))]
    matrices = [weights.get(f"{layer}.weight") for layer in [*layers, "classifier"]]
    found = [matrix for matrix in matrices if matrix is not None and matrix.dim() == 2]
    if len(found) < len(matrices):
        return None
    return SimpleMlp([found[0].shape[1], *(len(matrix) for matrix in found)], between)


class SimpleCnn(nn.Module):
    """Avalanche's ``SimpleCNN`` for images of at least 14 pixels."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Conv2d(64, 64, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool2d(1),
            nn.Dropout(0.25),
        )
        self.classifier = nn.Sequential(nn.Linear(64, classes))

    def forward(
        self,
        x: Tensor,  # (B, channels, side, side)
    ) -> Tensor:  # (B, m)
        """Return the logits of a batch of images."""
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


def fit_simple_cnn(weights: Mapping[str, Tensor]) -> SimpleCnn | None:
    """Return an empty :class:`SimpleCnn` for weights with its names, or None."""
    first, head = weights.get("features.0.weight"), weights.get("classifier.0.weight")
    if first is None or head is None or first.dim() != 4:
        return None
    return SimpleCnn(first.shape[1], len(head))
