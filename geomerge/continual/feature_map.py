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

__all__ = ["FeatureMap", "fit_feature_map"]

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
    old, new = old.cpu(), new.cpu()
    x_mean, y_mean = (t.mean(dim=0, dtype=torch.float64) for t in (old, new))
    x, y = old - x_mean.to(old), new - y_mean.to(new)
    matrix = torch.eye(old.shape[1], dtype=torch.float64)
    residual = torch.zeros_like(matrix)
    # Features of frozen layers stay as they are.
    moved = (old != new).any(dim=0).nonzero()[:, 0]
    gram = (x.T @ x).double() / len(x)
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-12)
    crossed = (x.T @ y[:, moved]).double() / len(x)
    matrix[moved] = torch.linalg.solve(gram, crossed).T
    rest = torch.addmm(y[:, moved], x, matrix[moved].T.to(x), alpha=-1)
    residual[moved[:, None], moved] = (rest.T @ rest).double() / len(x)
    whole = float(y.double().square().sum())
    unexplained = float(rest.double().square().sum()) / whole if whole > 0 else 0.0
    return FeatureMap(matrix, y_mean - matrix @ x_mean, residual, unexplained)
