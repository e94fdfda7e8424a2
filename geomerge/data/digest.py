"""Data -> the SHA-256 of exactly what was used of it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from geomerge.data.task import Split
from geomerge.io.files import canonical_json

__all__ = ["split_digests", "tensor_digest"]


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and numbers, in hexadecimal.

    Strides, device and the file that it came from change nothing.

    Args:
        tensor: Any dense tensor.
    """
    whole = tensor.detach().cpu().contiguous()
    kind = {"dtype": str(whole.dtype), "shape": list(whole.shape)}
    digest = hashlib.sha256(canonical_json(kind).encode())
    digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def split_digests(split: Split) -> dict[str, str | int]:
    """Return how many examples a split has, and the digests of its raw inputs and its labels."""
    return {
        "examples": len(split.labels),
        "inputs": tensor_digest(split.inputs.raw),
        "labels": tensor_digest(split.labels),
    }
