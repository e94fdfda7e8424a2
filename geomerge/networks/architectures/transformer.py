"""A small vision transformer with packed attention, class token and position embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["VisionTransformer", "fit_transformer"]

_PATCH = 4
_WIDTH = 128
_DEPTH = 4
_HEADS = 4


class VisionTransformer(nn.Module):
    """Vision transformer with patches of 4 x 4 pixels, width 128, and 4 layers of 4 heads.

    Args:
        channels: Number of channels of the images.
        patches: Number of patches of an image.
        classes: Number of outputs.
    """

    def __init__(self, channels: int, patches: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, _WIDTH, _PATCH, stride=_PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + patches, _WIDTH))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    _WIDTH, _HEADS, 4 * _WIDTH, 0.1, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(_DEPTH)
            )
        )
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, classes)

    def forward(
        self,
        x: Tensor,  # (B, channels, height, width)
    ) -> Tensor:  # (B, m)
        """Return the logits of a batch of images."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        out: Tensor = self.head(self.norm(self.layers(x)[:, 0]))
        return out


def fit_transformer(weights: Mapping[str, Tensor]) -> VisionTransformer | None:
    """Return an empty transformer for weights with its names, or None."""
    names = ("patches.weight", "positions", "head.weight")
    if not all(name in weights and weights[name].dim() > 1 for name in names):
        return None
    patches, positions, head = (weights[name] for name in names)
    return VisionTransformer(patches.shape[1], positions.shape[1] - 1, len(head))
