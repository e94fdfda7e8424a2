r"""What the function loses with a weight: scores by which weights go first.

Half the least functional change that comes with :math:`w_i = 0` is :math:`w_i^2 g_{ii} / 2` where
nothing else may move (LeCun, Denker & Solla 1990, Optimal Brain Damage) and
:math:`w_i^2 / 2 [(g + \mu I)^{-1}]_{ii}` where everything else compensates (Hassibi & Stork 1993,
Optimal Brain Surgeon). Here g is the metric of the outputs, not the Hessian of a loss: no labels
are needed, and it does not vanish at a minimum.
"""

from __future__ import annotations

from torch import Tensor

from geomerge.metric import KroneckerMetric, Metric

__all__ = ["SALIENCIES", "saliency"]

SALIENCIES = ("obs", "obd", "magnitude")
DAMPING = 1e-2


def saliency(
    w: Tensor,  # (n,)
    metric: Metric,
    kind: str,
    damping: float = DAMPING,
) -> Tensor:  # (n,)
    """Return the saliency of every weight.

    Args:
        w: The weights.
        metric: The metric there. Metrics without a diagonal at hand give the magnitude.
        kind: ``"obs"``, ``"obd"`` or ``"magnitude"``.
        damping: mu.

    Returns:
        Half squared functional change; squares of the weights for ``"magnitude"``.
    """
    squares = w.square()
    if kind == "magnitude" or not isinstance(metric, KroneckerMetric):
        return squares
    if kind == "obd":
        return squares * metric.diagonal_of(lambda s: s) / 2
    return squares / (2 * metric.diagonal_of(lambda s: 1 / (s + damping)))
