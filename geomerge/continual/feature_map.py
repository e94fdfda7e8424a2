r"""Map from old features to new ones, which carries the statistics of old classes along.

Ridge regression of the new network's features on the old one's, on the inputs of the new
experience. The covariance of its residual is added to the carried one: the regression explains a
part of the variance only. Without any map the statistics would belong to a network that is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.continual.class_statistics import ClassStatistics
from geomerge.networks.batches import Batch

__all__ = ["FeatureMap", "fit_feature_map", "views"]

_RIDGE = 1e-4  # share of the mean variance


@dataclass(frozen=True)
class FeatureMap:
    """Linear map with noise.

    Attributes:
        matrix: Matrix P, shape (d, d), in float64.
        shift: Constant b, shape (d,).
        residual: Covariance of the residual, shape (d, d).
        unexplained: Share of the new features' variance in the residual.
    """

    matrix: Tensor
    shift: Tensor
    residual: Tensor
    unexplained: float

    def carry(self, statistics: ClassStatistics) -> ClassStatistics:
        """Return statistics in the new features."""
        return statistics.carried(self.matrix, self.shift, self.residual)


def fit_feature_map(
    old: Tensor,  # (N, d)
    new: Tensor,  # (N, d)
) -> FeatureMap:
    """Fit new = P old + b by ridge regression.

    Args:
        old: Features of the old network.
        new: Features of the new one on the same inputs.
    """
    x, y = old.double().cpu(), new.double().cpu()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x / len(x)
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-12)
    matrix = torch.linalg.solve(gram, x.T @ y / len(x)).T
    rest = y - x @ matrix.T
    whole = float(y.square().sum())
    unexplained = float(rest.square().sum()) / whole if whole > 0 else 0.0
    shift = y_mean - matrix @ x_mean
    return FeatureMap(matrix, shift, rest.T @ rest / len(x), unexplained)


def views(x: Batch) -> list[Batch]:
    """Return inputs as they are and, of square images, mirrored and turned by quarters too.

    More inputs of other kinds make a better map for classes that are gone: on CIFAR-10 these five
    views brought a point and a half.
    """
    if isinstance(x, Tensor) and x.dim() == 4 and x.shape[-1] == x.shape[-2] > 1:
        return [x, x.flip(3), *(torch.rot90(x, k, (2, 3)) for k in (1, 2, 3))]
    return [x]
