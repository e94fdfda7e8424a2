r"""Output maps of a metric: logits, softmax, Hellinger and tempered coordinates.

A metric measures the change of the mapped outputs :math:`\phi`.
With :math:`\phi = 2\sqrt{\mathrm{softmax}\,f}` the pullback metric is exactly the Fisher metric
:math:`\sum_c dp_c\,dp_c / p_c`, and :math:`|\phi' - \phi|^2 = 4\sum_c(\sqrt{p'_c}-\sqrt{p_c})^2`
is at most 8 (Amari 2016, sec. 3.5). ArXiv 2012.09605, eq. (2), does not say whether the outputs are
logits or softmax probabilities. The pullback metric of :math:`\phi = \mathrm{softmax}\,f` is
:math:`\sum_c dp_c\,dp_c`: for confident predictions it vanishes twice as fast as the Fisher metric.

At a temperature T, as in distillation (Hinton, Vinyals & Dean 2015),
:math:`\phi = 2T\sqrt{\mathrm{softmax}(f/T)}` also depends on the ranking of the rejected classes.
Its metric is the Fisher metric for T = 1 and tends to that of the centred logits divided by m for T
to infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.errors import OptionError, did_you_mean

__all__ = ["OUTPUTS", "TEMPERATURE", "functional_change", "nearly_equal", "output_map"]

OUTPUTS = ("hellinger", "tempered", "logits", "softmax")
TEMPERATURE = 4.0  # T of the output "tempered"


def output_map(
    logits: Tensor,  # (B, m)
    output: str,
) -> Tensor:  # (B, m)
    """Map logits to the coordinates in which the metric is Euclidean.

    Args:
        logits: Outputs of the network.
        output: Name of the map, one of :data:`OUTPUTS`.

    Returns:
        Coordinates phi.

    Raises:
        OptionError: If the name is unknown.
    """
    if output in ("hellinger", "tempered"):
        t = TEMPERATURE if output == "tempered" else 1.0
        # exp(log p / 2) instead of sqrt(p), whose gradient is infinite where p underflows.
        return 2 * t * torch.exp(0.5 * torch.log_softmax(logits / t, dim=-1))
    if output == "logits":
        return logits
    if output == "softmax":
        return torch.softmax(logits, dim=-1)
    raise OptionError(f"unknown output {output!r}{did_you_mean(output, OUTPUTS)}")


def functional_change(
    one: Tensor,  # (B, m)
    other: Tensor,  # (B, m)
    output: str,
) -> float:
    """Return the mean over inputs of |phi(one) - phi(other)|^2 for two batches of logits.

    Args:
        one: Logits before a change of the weights.
        other: Logits of the same inputs after it.
        output: Name of the output map, one of :data:`OUTPUTS`.

    Example:
        >>> import torch
        >>> from geomerge.metrics import functional_change
        >>> sure_of_one, sure_of_other = torch.tensor([[9.0, -9.0]]), torch.tensor([[-9.0, 9.0]])
        >>> round(functional_change(sure_of_one, sure_of_other, "hellinger"), 2)  # 8 at most
        8.0
        >>> functional_change(sure_of_one, sure_of_one, "hellinger")
        0.0
    """
    gap = output_map(one.double(), output) - output_map(other.double(), output)
    return float(gap.square().sum(dim=1).mean())


def nearly_equal(one: Tensor, other: Tensor, tolerance: float | None = None) -> bool:
    """Return whether two tensors have the same shape and nearly the same values.

    Args:
        one: First tensor.
        other: Second tensor; the difference is relative to its norm.
        tolerance: Largest relative difference; None takes the square root of the type's machine
            epsilon.
    """
    if tolerance is None:
        tolerance = torch.finfo(one.dtype).eps ** 0.5
    return one.shape == other.shape and bool((one - other).norm() <= tolerance * other.norm())
