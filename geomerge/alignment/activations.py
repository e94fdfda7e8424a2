"""Activation matching: permutations of units that maximise the correlation of activations.

Units of a and b are matched so that the sum of the correlations of their activations over inputs is
largest (Li et al. 2015, convergent learning; Tatro et al. 2020; Jordan et al. 2022, REPAIR).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from geomerge.alignment.groups import PermutationGroup, permute
from geomerge.alignment.weights import assignment
from geomerge.data import Inputs
from geomerge.networks.batches import Batch, cast_floats
from geomerge.networks.network import Network

__all__ = ["match_activations"]

_INPUTS = 2000
_BATCH = 250
_ELEMENTS = 2**25  # activations held at a time: 128 MiB in float32
_ROUNDING = 1e-9  # smallest significant gain, relative to the number of units


def match_activations(
    network: Network,
    groups: Sequence[PermutationGroup],
    a: Tensor,  # (n,)
    b: Tensor,  # (n,)
    inputs: Inputs,
    seed: int = 0,
) -> Tensor:  # (n,), int64
    """Return the source of each entry of the permuted b; groups without a gain are not permuted.

    Args:
        network: Network.
        groups: Groups of units; correlations are summed over a group's layers.
        a: Weights to match.
        b: Weights to permute.
        inputs: Inputs on which activations are compared; each position of an image is a sample.
        seed: Seed of the choice of 2000 inputs.
    """
    layers = [layer for group in groups for layer in group.units.layers]
    moments = {layer: _Moments() for layer in layers}
    sample = inputs.sample(_INPUTS, seed)
    first = _activations(network, layers, a, sample.batch(slice(0, 1)))
    width = sum(out.numel() for out in first.values())
    for x in sample.batches(min(_BATCH, max(1, _ELEMENTS // max(width, 1)))):
        one, two = _activations(network, layers, a, x), _activations(network, layers, b, x)
        for layer in layers:
            moments[layer].add(one[layer], two[layer])
    source = torch.arange(len(b))
    for group in groups:
        correlation = sum(
            (moments[layer].correlation() for layer in group.units.layers), torch.zeros(())
        )
        order = assignment(correlation, group.blocks)
        gain = correlation[torch.arange(group.count), order].sum() - correlation.trace()
        if float(gain) > _ROUNDING * group.count:
            permute(group, order, source)
    return source


class _Moments:
    """Sums over inputs for the correlations of two layers' units, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._centres: tuple[Tensor, Tensor] | None = None
        self._sums = [torch.zeros(())] * 5

    def add(
        self,
        one: Tensor,  # (N, units)
        two: Tensor,  # (N, units)
    ) -> None:
        """Add a batch."""
        one, two = one.double().cpu(), two.double().cpu()
        if self._centres is None:  # near the means, to avoid cancellation in the variances
            self._centres = one.mean(0), two.mean(0)
        one, two = one - self._centres[0], two - self._centres[1]
        parts = [one.sum(0), two.sum(0), one.square().sum(0), two.square().sum(0), one.T @ two]
        self._sums = [s + p for s, p in zip(self._sums, parts, strict=True)]
        self._count += len(one)

    def correlation(self) -> Tensor:  # (units, units)
        """Return Pearson correlations; those of constant units are zero."""
        one, two, one_squares, two_squares, products = (s / self._count for s in self._sums)
        covariance = products - one[:, None] * two
        variances = (one_squares - one.square())[:, None] * (two_squares - two.square())
        found = covariance / variances.clamp(min=0).sqrt()
        return torch.where(found.isfinite(), found, 0.0).clamp(-1, 1)


def _activations(
    network: Network, layers: Sequence[str], w: Tensor, x: Batch
) -> dict[str, Tensor]:  # (N, units) each
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    x = cast_floats(x, w)
    with ExitStack() as hooks:
        for name, parts in found.items():
            layer = network.module.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(partial(_keep, parts)))
        network.logits(w, x)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _keep(parts: list[Tensor], layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
    units = out.movedim(-1 if isinstance(layer, nn.Linear) else 1, -1)
    # A copy, since a later in-place operation would change the output.
    parts.append(units.reshape(-1, units.shape[-1]).clone())
