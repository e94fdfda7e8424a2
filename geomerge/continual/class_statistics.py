r"""Class means and one covariance in feature space, and the linear discriminant that follows.

With classes :math:`N(\mu_c, \Sigma)` the posterior is the softmax of
:math:`x'\Sigma^{-1}\mu_c - \mu_c'\Sigma^{-1}\mu_c / 2` (Fisher 1936; in streams Hayes &
Kanan 2020): a linear layer in closed form, whatever the order in which classes came.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.metrics.kronecker.factor import Factor, decompose, factorise

__all__ = ["ClassKey", "ClassStatistics", "Discriminant", "StoredStatistics", "measure_statistics"]

ClassKey = tuple[int | None, int]  # head, class

_WHOLE = 4096  # largest width of a covariance that is stored with all its eigenvectors


@dataclass(frozen=True)
class Discriminant:
    """Linear discriminant of some classes.

    Attributes:
        classes: Number of each class.
        weight: Weights, shape (C, d), centred over classes.
        bias: Biases, shape (C,).
    """

    classes: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(
        self,
        features: Tensor,  # (N, d)
    ) -> Tensor:  # (N,)
        """Return the class of each row."""
        return self.classes[(features.to(self.weight) @ self.weight.T + self.bias).argmax(dim=1)]


@dataclass(frozen=True)
class ClassStatistics:
    """Statistics of classes in feature space.

    Attributes:
        keys: Head and number of each class.
        counts: Number of examples of each class, shape (C,).
        means: Means, shape (C, d).
        covariance: Covariance within classes, which all share, shape (d, d), in float64.
    """

    keys: tuple[ClassKey, ...]
    counts: Tensor
    means: Tensor
    covariance: Tensor

    def stored(self) -> StoredStatistics:
        """Return the statistics as they are stored, with eigenvectors in half precision."""
        matrix = (self.covariance + self.covariance.T) / 2
        # A discriminant divides by the least eigenvalues, which a leading part would lose.
        found = decompose(matrix.float()) if len(matrix) <= _WHOLE else factorise(matrix)
        factor = Factor(found.vectors.half(), found.values.float(), found.tail)
        return StoredStatistics(self.keys, self.counts, self.means, factor)

    def rows(self, head: int | None) -> Tensor:  # (C_head,)
        """Return the places of the classes of a head."""
        return torch.tensor([i for i, (own, _) in enumerate(self.keys) if own == head])

    def discriminant(self, head: int | None, shrinkage: float) -> Discriminant:
        """Return the linear discriminant of the classes of a head.

        Args:
            head: Task label of the head; None without.
            shrinkage: Multiple of the mean variance added to the covariance's diagonal.
        """
        rows = self.rows(head)
        means = self.means[rows].double()
        ridge = shrinkage * self.covariance.diagonal().mean() + 1e-12
        damped = self.covariance.clone()
        damped.diagonal().add_(ridge)
        weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(damped)).T
        bias = -0.5 * (weight * means).sum(dim=1)
        # A term that all classes share changes no probability.
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
        classes = torch.tensor([self.keys[i][1] for i in rows.tolist()])
        return Discriminant(classes, weight.float(), bias.float())

    def draw(self, count: int, seed: int) -> Tensor:  # (C, count, d)
        """Return features drawn from the Gaussian of each class.

        Args:
            count: Number of features of each class.
            seed: Seed of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        root = _root(self.covariance).float()
        drawn = torch.randn(len(self.keys), count, len(root), generator=generator)
        return self.means[:, None] + drawn @ root.T

    def joined(self, other: ClassStatistics) -> ClassStatistics:
        """Return statistics of the classes of both; those of a class in both are pooled."""
        total = float(self.counts.sum() + other.counts.sum())
        scatter = float(self.counts.sum()) * self.covariance
        scatter = scatter + float(other.counts.sum()) * other.covariance
        keys, counts, means = list(self.keys), self.counts.tolist(), list(self.means.double())
        for key, count, mean in zip(
            other.keys, other.counts.tolist(), other.means.double(), strict=True
        ):
            if key not in keys:
                keys.append(key)
                counts.append(count)
                means.append(mean)
                continue
            at = keys.index(key)
            share, gap = count / (counts[at] + count), mean - means[at]
            scatter += counts[at] * share * torch.outer(gap, gap)
            means[at] = means[at] + share * gap
            counts[at] += count
        return ClassStatistics(
            tuple(keys), torch.tensor(counts), torch.stack(means).float(), scatter / total
        )

    def carried(
        self,
        matrix: Tensor,  # (d, d)
        shift: Tensor,  # (d,)
        residual: Tensor,  # (d, d)
    ) -> ClassStatistics:
        """Return the statistics of features x' = matrix x + shift + noise.

        Args:
            matrix: Linear map.
            shift: Constant.
            residual: Covariance of the noise.
        """
        means = (self.means.double() @ matrix.T + shift).float()
        covariance = matrix @ self.covariance @ matrix.T + residual
        return replace(self, means=means, covariance=covariance)


@dataclass(frozen=True)
class StoredStatistics:
    """Class statistics as they are stored.

    Attributes:
        keys: Head and number of each class.
        counts: Number of examples of each class, shape (C,).
        means: Means, shape (C, d).
        covariance: Covariance within classes: eigenvectors in half precision, values in single.
    """

    keys: tuple[ClassKey, ...]
    counts: Tensor
    means: Tensor
    covariance: Factor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        own = self.covariance
        return sum(t.nbytes for t in (self.counts, self.means, own.vectors, own.values))

    @property
    def rank(self) -> int:
        """Number of directions of the covariance."""
        return len(self.covariance.values)

    def whole(self) -> ClassStatistics:
        """Return the statistics as they are computed with."""
        own = self.covariance
        dense = Factor(own.vectors.double(), own.values.double(), own.tail).dense()
        return ClassStatistics(self.keys, self.counts, self.means, dense)

    def truncated(self, rank: int) -> StoredStatistics:
        """Return the statistics with fewer directions of the covariance; the rest is isotropic."""
        return replace(self, covariance=self.covariance.truncated(rank))


def measure_statistics(
    features: Tensor,  # (N, d)
    labels: Tensor,  # (N,)
    head: int | None = None,
) -> ClassStatistics:
    """Measure the statistics of classes.

    Args:
        features: Features.
        labels: Class of each.
        head: Task label of the classes' head; None without.

    Example:
        >>> import torch
        >>> from geomerge.continual import measure_statistics
        >>> labels = torch.arange(300) % 3
        >>> features = torch.randn(300, 5) + 4 * torch.eye(5)[labels]
        >>> discriminant = measure_statistics(features, labels).discriminant(None, 0.01)
        >>> bool((discriminant(features) == labels).float().mean() > 0.9)
        True
    """
    x, labels = features.cpu(), labels.cpu()
    classes = labels.unique()
    means = torch.stack([x[labels == c].mean(dim=0, dtype=torch.float64) for c in classes])
    centred = x - means.to(x)[torch.searchsorted(classes, labels)]
    scatter = (centred.T @ centred).double() / max(len(x) - len(classes), 1)
    counts = torch.tensor([int((labels == c).sum()) for c in classes])
    keys = tuple((head, int(c)) for c in classes)
    return ClassStatistics(keys, counts, means.float(), scatter)


def _root(matrix: Tensor) -> Tensor:  # (d, d)
    """Return the Cholesky factor of a matrix that may be singular."""
    damped = matrix.clone()
    damped.diagonal().add_(1e-6 * matrix.diagonal().mean() + 1e-12)
    root: Tensor = torch.linalg.cholesky(damped)
    return root
