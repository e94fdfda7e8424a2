r"""The output whose change the metric measures: logits, probabilities or their Hellinger form.

With :math:`\phi = 2\sqrt{\mathrm{softmax}\,f}` the pullback metric is exactly the Fisher metric
:math:`\sum_c dp_c\,dp_c / p_c`, and :math:`|\phi' - \phi|^2 = 4\sum_c(\sqrt{p'_c}-\sqrt{p_c})^2`
is bounded by 8 (Amari 2016, sec. 3.5). ArXiv 2012.09605, eq. (2), takes the network's outputs
themselves: logits or, as it does not say which, softmax probabilities. The pullback metric of
:math:`\phi = \mathrm{softmax}\,f` is :math:`\sum_c dp_c\,dp_c`: where the network is sure it fades
twice as fast as Fisher's.

At a temperature T, as in distillation (Hinton, Vinyals & Dean 2015),
:math:`\phi = 2T\sqrt{\mathrm{softmax}(f/T)}` also sees how the network ranks the classes that it
rejects. Its metric goes from Fisher's (T = 1) to that of the centred logits over m (T to infinity).
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.errors import OptionError, did_you_mean

__all__ = ["OUTPUTS", "functional_change", "output_map"]

OUTPUTS = ("hellinger", "tempered", "logits", "softmax")
TEMPERATURE = 4.0  # of "tempered"


def output_map(
    logits: Tensor,  # (B, m)
    output: str,
) -> Tensor:  # (B, m)
    """Map logits to the coordinates in which the metric is Euclidean.

    Args:
        logits: The network's outputs.
        output: One of :data:`OUTPUTS`.

    Returns:
        The coordinates phi.

    Raises:
        OptionError: If ``output`` is none of them.
    """
    if output in ("hellinger", "tempered"):
        t = TEMPERATURE if output == "tempered" else 1.0
        # exp(log p / 2) and not sqrt(p): the gradient stays finite where p underflows.
        return 2 * t * torch.exp(0.5 * torch.log_softmax(logits / t, dim=1))
    if output == "logits":
        return logits
    if output == "softmax":
        return torch.softmax(logits, dim=1)
    raise OptionError(f"unknown output {output!r}{did_you_mean(output, OUTPUTS)}")


def functional_change(
    one: Tensor,  # (B, m)
    other: Tensor,  # (B, m)
    output: str,
) -> float:
    """Return the mean over inputs of |phi(one) - phi(other)|^2, for two batches of logits.

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
