"""Stacks of Linear layers, ordered by names and shapes of their weights."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from torch import Tensor, nn

from geomerge.networks.architectures.activations import USUAL, activation

__all__ = ["LinearStack", "fit_stack"]

_LONGEST_STACK = 64  # largest number of layers of a plausible stack
_MOST_TRIES = 10_000  # number of tried orders after which the order counts as unclear


class LinearStack(nn.Module):
    """Linear layers with an activation between them, under any dotted names.

    Args:
        names: Dotted name of each layer in the state dict.
        sizes: Number of units of the input and of each layer, one more than ``names``.
        bias: Whether each layer has a bias.
        between: Name of the activation, one of
            :data:`~geomerge.networks.architectures.activations.ACTIVATIONS`.
    """

    def __init__(
        self, names: list[str], sizes: list[int], bias: list[bool], between: str = USUAL
    ) -> None:
        super().__init__()
        self._order = names
        self._between = (activation(between),)  # a tuple, so that it has no name in the state dict
        for name, d_in, d_out, b in zip(names, sizes[:-1], sizes[1:], bias, strict=True):
            *parents, last = name.split(".")
            owner: nn.Module = self
            for parent in parents:
                if not hasattr(owner, parent):
                    owner.add_module(parent, nn.Module())
                owner = owner.get_submodule(parent)
            owner.add_module(last, nn.Linear(d_in, d_out, bias=b))

    def forward(
        self,
        x: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits of a batch; each input is flattened."""
        x = x.flatten(1)
        (between,) = self._between
        for i, name in enumerate(self._order):
            x = self.get_submodule(name)(between(x) if i else x)
        return x


def fit_stack(weights: Mapping[str, Tensor], between: str = USUAL) -> LinearStack | None:
    """Return an empty stack for weights of one, or None."""
    stack = _linear_order(weights)
    if stack is None:
        return None
    sizes = [weights[f"{stack[0]}.weight"].shape[1]]
    sizes += [weights[f"{layer}.weight"].shape[0] for layer in stack]
    bias = [f"{layer}.bias" in weights for layer in stack]
    return LinearStack(stack, sizes, bias, between)


def _linear_order(weights: Mapping[str, Tensor]) -> list[str] | None:
    """Return the names of the linear layers from input to output; None if ambiguous."""
    layers = [k.removesuffix(".weight") for k in weights if k.endswith(".weight")]
    known = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if not layers or not set(weights) <= known:
        return None
    sizes: dict[str, tuple[int, ...]] = {k: tuple(weights[f"{k}.weight"].shape) for k in layers}
    if any(len(size) != 2 for size in sizes.values()) or len(layers) > _LONGEST_STACK:
        return None
    for layer in layers:
        bias = weights.get(f"{layer}.bias")
        if bias is not None and tuple(bias.shape) != sizes[layer][:1]:
            return None
    ordered = sorted(layers, key=_natural)
    if not _chains(ordered, sizes):
        return _only_chain(layers, sizes)
    # Layers of equal shape are interchangeable, unless their names differ only in numbers.
    for i, one in enumerate(ordered):
        for other in ordered[:i]:
            if sizes[one] == sizes[other] and re.sub(r"\d+", "", one) != re.sub(r"\d+", "", other):
                return None
    return ordered


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _chains(order: list[str], sizes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(sizes[one][0] == sizes[two][1] for one, two in itertools.pairwise(order))


def _only_chain(layers: list[str], sizes: Mapping[str, tuple[int, ...]]) -> list[str] | None:
    found: list[list[str]] = []
    tries = 0

    def extend(chain: list[str]) -> None:
        nonlocal tries
        tries += 1
        if len(chain) == len(layers):
            found.append(chain)
        for layer in layers:
            fits = not chain or sizes[chain[-1]][0] == sizes[layer][1]
            if len(found) < 2 and tries < _MOST_TRIES and layer not in chain and fits:
                extend([*chain, layer])

    extend([])
    return found[0] if len(found) == 1 and tries < _MOST_TRIES else None
