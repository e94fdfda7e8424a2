r"""Rotations of a vision transformer's residual stream and heads, which keep its function.

The scale and shift of a LayerNorm go into the matrix that reads it, and the mean of the stream out
of what writes it. What is left of a norm commutes with every orthogonal Q with Q 1 = 1, so that
the stream can be rotated. In a head :math:`W_q' W_k` and :math:`W_o W_v` stay if queries and keys,
and values, are rotated (Theus et al. 2025, arXiv 2506.22712).

Each rotation solves a Procrustes problem: that of the stream by its activations before the first
layer and after each, those of heads by their weights. Heads are permuted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from geomerge.alignment.streams import ResidualStream
from geomerge.alignment.weights import assignment
from geomerge.data import Inputs
from geomerge.networks.batches import Batch, cast_floats
from geomerge.networks.network import Network

__all__ = ["ROTATIONS", "rotate_weights"]

ROTATIONS = "rotations"  # name of the method among the options of a merge
_INPUTS = 2000
_BATCH = 250

Parts = dict[str, Tensor]


@torch.no_grad()
def rotate_weights(
    network: Network,
    stream: ResidualStream,
    weights: Sequence[Tensor],  # (n,) each
    inputs: Inputs,
    seed: int = 0,
) -> list[Tensor]:  # (n,) each
    """Return weights of the same functions, those after the first brought near to it.

    Scales of norms are one and their shifts zero in all of them. Rotations are computed in float64.

    Args:
        network: Network of the weights.
        stream: Its residual stream.
        weights: Weights, of which none is changed.
        inputs: Unlabelled inputs on which streams are compared.
        seed: Seed of the choice of 2000 inputs.
    """
    plain = [w.to(torch.float64, copy=True) for w in weights]
    parts = [network.unravel(w) for w in plain]  # views
    for own in parts:
        _absorb(own, stream)
    first, *others = parts
    rounded = [w.to(old) for w, old in zip(plain, weights, strict=True)]
    sums: list[Tensor] = [torch.zeros((), dtype=torch.float64, device=w.device) for w in plain[1:]]
    for x in inputs.sample(_INPUTS, seed).batches(_BATCH):
        start, *seen = (_directions(network, stream, w, x) for w in rounded)
        for k, found in enumerate(seen):
            pairs = zip(start, found, strict=True)
            sums[k] = sums[k] + sum(one.T @ two / len(one) for one, two in pairs)
    for own, products in zip(others, sums, strict=True):
        # Neither stream has a mean, so that the ones vector is free to stay where it is.
        kept = torch.full_like(products, float(products.norm()) / len(products))
        _rotate(own, stream, _procrustes(products + kept))
        for name in stream.attentions:
            _match_heads(first, own, name, stream.heads)
    return [w.to(old) for w, old in zip(plain, weights, strict=True)]


def _absorb(parts: Parts, stream: ResidualStream) -> None:
    """Let matrices absorb scales and shifts of norms and the mean of the stream, in place."""
    for norm, reader in stream.norms.items():
        scale, shift = parts[f"{norm}.weight"], parts[f"{norm}.bias"]
        weight = parts[f"{reader}weight"]
        parts[f"{reader}bias"] += weight @ shift
        weight *= scale
        weight -= weight.mean(1, keepdim=True)  # what it reads has no mean
        scale.fill_(1.0)
        shift.zero_()
    for written in _writes(parts, stream):
        written -= written.mean(0)


def _rotate(parts: Parts, stream: ResidualStream, rotation: Tensor) -> None:
    """Rotate the stream of a network without scales in its norms, in place."""
    for reader in stream.norms.values():
        parts[f"{reader}weight"].copy_(parts[f"{reader}weight"] @ rotation.T)
    for written in _writes(parts, stream):
        written.copy_(torch.tensordot(rotation, written, 1))


def _writes(parts: Parts, stream: ResidualStream) -> Iterator[Tensor]:  # (width, ...)
    for name, dim in stream.writers.items():
        yield parts[name].movedim(dim, 0)


def _directions(
    network: Network, stream: ResidualStream, w: Tensor, x: Batch
) -> list[Tensor]:  # (tokens, width) each, float64
    """Return tokens of length one before the first layer and after each.

    After the last one it is the first token alone, since the head reads no other.
    """
    found: list[Tensor] = []
    with ExitStack() as hooks:
        for number, name in enumerate(stream.layers):
            layer = network.module.get_submodule(name)
            if not number:
                hooks.enter_context(
                    layer.register_forward_pre_hook(lambda layer, given: found.append(given[0]))
                )
            hooks.enter_context(
                layer.register_forward_hook(lambda layer, given, out: found.append(out))
            )
        network.logits(w, cast_floats(x, w))
    found[-1] = found[-1][:, :1]
    return [nn.functional.normalize(out.double().flatten(0, 1), dim=1) for out in found]


def _procrustes(product: Tensor) -> Tensor:
    """Return the orthogonal Q with the largest trace of Q' P, for P = A B': Q B is nearest to A."""
    u, _, v = torch.linalg.svd(product)
    out: Tensor = u @ v
    return out


def _match_heads(one: Parts, two: Parts, name: str, count: int) -> None:
    """Permute the second's heads, and rotate queries and keys, and values, of each, in place."""
    mine, yours = _circuits(one, name, count), _circuits(two, name, count)
    worth = torch.zeros(count, count)
    for i in range(count):
        for j in range(count):
            products = (a[i] @ b[j].T for a, b in zip(mine, yours, strict=True))
            worth[i, j] = sum(float(torch.linalg.svdvals(p).sum()) for p in products)
    order = assignment(worth).tolist()
    queries_keys, values = (
        torch.stack([_procrustes(a[i] @ b[j].T) @ b[j] for i, j in enumerate(order)])
        for a, b in zip(mine, yours, strict=True)
    )
    read = two[f"{name}.in_proj_weight"].shape[1] + 1  # with the bias
    packed = torch.stack([*queries_keys.split(read, dim=2), values[:, :, :read]]).flatten(0, 2)
    two[f"{name}.in_proj_weight"].copy_(packed[:, :-1])
    two[f"{name}.in_proj_bias"].copy_(packed[:, -1])
    two[f"{name}.out_proj.weight"].copy_(values[:, :, read:].flatten(0, 1).T)


def _circuits(parts: Parts, name: str, count: int) -> tuple[Tensor, Tensor]:
    """Return what the units of each head read and write, shape (heads, units, numbers).

    Queries and keys with their biases; and values with theirs and the columns of the outputs.
    """
    weight, bias = parts[f"{name}.in_proj_weight"], parts[f"{name}.in_proj_bias"]
    packed = torch.cat([weight, bias[:, None]], dim=1)
    queries, keys, values = packed.unflatten(0, (3, count, -1))
    outputs = parts[f"{name}.out_proj.weight"].T.unflatten(0, (count, -1))
    return torch.cat([queries, keys], dim=2), torch.cat([values, outputs], dim=2)
