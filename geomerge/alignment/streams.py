"""Residual streams of vision transformers, by the tensors that write and read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from geomerge.networks.architectures.transformer import VisionTransformer

__all__ = ["ResidualStream", "find_stream"]


@dataclass(frozen=True)
class ResidualStream:
    """Residual stream of a pre-norm transformer, by the names of its tensors and modules.

    Attributes:
        layers: Modules that add to the stream, in order; their inputs and outputs are the stream,
            shape (B, tokens, width).
        writers: Dimension of each tensor that is one of the stream's, by the tensor's name.
        norms: Beginning of the names of the matrix and the bias that read each LayerNorm's output,
            by the norm's name.
        attentions: Packed attention modules.
        heads: Number of heads of each.
    """

    layers: tuple[str, ...]
    writers: Mapping[str, int]
    norms: Mapping[str, str]
    attentions: tuple[str, ...]
    heads: int


def find_stream(module: nn.Module) -> ResidualStream | None:
    """Return the residual stream of a ``vit-cifar``; None of any other network.

    Args:
        module: Network.
    """
    if not isinstance(module, VisionTransformer):
        return None
    layers = [f"layers.{k}" for k in range(len(module.layers))]
    writers = {"token": 2, "positions": 2, "patches.weight": 0, "patches.bias": 0}
    norms = {}
    for name in layers:
        for part in ("self_attn.out_proj", "linear2"):
            writers |= {f"{name}.{part}.weight": 0, f"{name}.{part}.bias": 0}
        norms[f"{name}.norm1"] = f"{name}.self_attn.in_proj_"
        norms[f"{name}.norm2"] = f"{name}.linear1."
    norms["norm"] = "head."
    first = module.layers[0]
    assert isinstance(first, nn.TransformerEncoderLayer)
    attentions = tuple(f"{name}.self_attn" for name in layers)
    return ResidualStream(tuple(layers), writers, norms, attentions, first.self_attn.num_heads)
