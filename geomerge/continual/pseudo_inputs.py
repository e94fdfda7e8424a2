r"""Pseudo-inputs drawn from the first two moments of a task's inputs.

The moments are those of a mixture of Gaussians, one for each group of inputs: mean, leading
directions of the covariance and an isotropic rest. Rehearsing the old network's outputs on random
inputs is pseudorehearsal (Robins 1995); with the right moments they move a network's layers as the
true inputs did, and no input is stored. Values beyond the range of the inputs stay: cutting them
off would change the moments, and on class-incremental MNIST it cost four points.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.metrics.kronecker.factor import Factor

__all__ = ["Cluster", "InputMoments", "measure_moments"]

_ROUNDED = 0.01  # largest rounding of a mean in half precision, in deviations of the inputs
_MORE = 8  # oversampling, for the last of the leading directions to be right
_PRODUCTS = 2


@dataclass(frozen=True)
class Cluster:
    """Moments of one group of inputs.

    Attributes:
        share: Share of the group in all inputs.
        mean: Mean, shape (d,); in half precision where that does not round much.
        covariance: Covariance, as leading directions, in half precision, and an isotropic rest;
            groups may share one.
    """

    share: float
    mean: Tensor
    covariance: Factor


@dataclass(frozen=True)
class InputMoments:
    """Mixture of Gaussians with the moments of a task's inputs.

    Attributes:
        shape: Shape of one input.
        clusters: Moments of each group.
    """

    shape: tuple[int, ...]
    clusters: tuple[Cluster, ...]

    def draw(self, count: int, seed: int) -> Tensor:  # (count, *shape)
        """Return pseudo-inputs, the same for the same seed.

        Args:
            count: Number of pseudo-inputs; each group has its share of them.
            seed: Seed of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        parts = []
        ends = [round(count * total) for total in accumulate(c.share for c in self.clusters)]
        for cluster, start, end in zip(self.clusters, [0, *ends], ends, strict=False):
            u, s = cluster.covariance.vectors.float(), cluster.covariance.values
            number = end - start
            inside = torch.randn(number, len(s), generator=generator) * s.sqrt()
            outside = torch.randn(number, len(u), generator=generator)
            outside -= outside @ u @ u.T
            parts.append(cluster.mean + inside @ u.T + cluster.covariance.tail**0.5 * outside)
        return torch.cat(parts).view(-1, *self.shape)

    @property
    def rank(self) -> int:
        """Largest number of leading directions of a group."""
        return max(len(c.covariance.values) for c in self.clusters)

    @property
    def kept(self) -> float:
        """Share of the inputs' variance in the leading directions."""
        inside = sum(c.share * float(c.covariance.values.double().sum()) for c in self.clusters)
        whole = sum(c.share * c.covariance.trace for c in self.clusters)
        return inside / whole if whole > 0 else 1.0

    @property
    def shared(self) -> bool:
        """Whether all groups have one covariance."""
        return len({id(c.covariance) for c in self.clusters}) == 1

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        covariances = {id(c.covariance): c.covariance for c in self.clusters}.values()
        return sum(c.mean.nbytes for c in self.clusters) + sum(
            t.nbytes for covariance in covariances for t in (covariance.vectors, covariance.values)
        )

    def truncated(self, rank: int) -> InputMoments:
        """Return the moments with fewer leading directions; the rest becomes isotropic."""
        covariances = {id(c.covariance): c.covariance for c in self.clusters}
        fewer = {key: covariance.truncated(rank) for key, covariance in covariances.items()}
        return self._with([fewer[id(c.covariance)] for c in self.clusters])

    def with_one_covariance(self, rank: int) -> InputMoments:
        """Return the moments with the mean covariance of the groups for each of them.

        Args:
            rank: Number of leading directions of that covariance.
        """
        size = len(self.clusters[0].mean)
        tail = sum(c.share * c.covariance.tail for c in self.clusters)
        more = [  # rows whose outer products sum to the covariance beyond its isotropic part
            (c.share * (c.covariance.values - c.covariance.tail).clamp(min=0)).sqrt()[:, None]
            * c.covariance.vectors.float().T
            for c in self.clusters
        ]
        _, s, vh = torch.linalg.svd(torch.cat(more), full_matrices=False)
        values = s.square() + tail
        whole = Factor(vh.T.contiguous(), values, tail if len(values) < size else 0.0)
        covariance = _in_half(whole.truncated(rank))
        return self._with([covariance] * len(self.clusters))

    def _with(self, covariances: list[Factor]) -> InputMoments:
        pairs = zip(self.clusters, covariances, strict=True)
        return InputMoments(self.shape, tuple(Cluster(c.share, c.mean, f) for c, f in pairs))


def measure_moments(
    inputs: Inputs,
    groups: Tensor,  # (N,)
    rank: int,
) -> InputMoments:
    """Measure the moments of inputs, group by group.

    Args:
        inputs: Inputs of floats or pixels.
        groups: Number of each input's group, such as its predicted class.
        rank: Number of leading directions of each group, found by a randomised decomposition
            (Halko, Martinsson & Tropp 2011).

    Returns:
        Moments on the CPU.

    Example:
        >>> import geomerge as gm
        >>> from geomerge.continual import measure_moments
        >>> split = gm.load_task("digits").train
        >>> moments = measure_moments(split.inputs, split.labels, rank=8)
        >>> moments.draw(5, seed=0).shape  # pseudo-inputs with these moments
        torch.Size([5, 1, 8, 8])
    """
    clusters = []
    groups = groups.cpu()
    for group in groups.unique():
        index = (groups == group).nonzero()[:, 0]
        batch = inputs.batch(index)
        assert isinstance(batch, Tensor), "only inputs of one tensor have moments here"
        x = batch.flatten(1).cpu()
        mean = x.mean(dim=0)
        covariance = _covariance(x - mean, rank)
        spread = (covariance.trace / len(mean)) ** 0.5
        rounded = mean.half()
        near = bool((rounded.float() - mean).abs().max() <= _ROUNDED * spread)
        mean = rounded if near else mean
        clusters.append(Cluster(len(x) / len(groups), mean, _in_half(covariance)))
    return InputMoments(inputs.shape, tuple(clusters))


def _in_half(factor: Factor) -> Factor:
    """Return a factor with eigenvectors of half precision, whose entries are at most one."""
    return Factor(factor.vectors.half(), factor.values.float(), factor.tail)


def _covariance(
    x: Tensor,  # (N, d), centred
    rank: int,
) -> Factor:
    number, size = x.shape
    rank = min(rank, size, max(number - 1, 1))
    carried = min(rank + _MORE, size)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(size, carried, generator=generator)
    for _ in range(_PRODUCTS):
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q
    inside = (x @ basis).double()
    values, turned = torch.linalg.eigh(inside.T @ inside / max(number - 1, 1))
    values, turned = values.flip(0)[:rank].clamp(min=0), turned.flip(1)[:, :rank]
    whole = float(x.square().sum(dim=0, dtype=torch.float64).sum()) / max(number - 1, 1)
    tail = max(whole - float(values.sum()), 0.0) / (size - rank) if size > rank else 0.0
    return Factor((basis.double() @ turned).to(x), values.to(x), tail)
