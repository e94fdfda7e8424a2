r"""How long steps against the drift may be.

Steps :math:`-\eta\,\mu(g + \mu I)^{-1} G \,\delta` with momentum 0.9 grow where :math:`\eta` times
the largest eigenvalue of the preconditioned exact metric G passes 3.8 (Polyak 1964). The Kronecker
form g leaves much of G out in deep networks, so that eigenvalue is measured.
"""

from __future__ import annotations

import torch

from geomerge.metric import KroneckerMetric, Metric, exact_metric
from geomerge.sparsifying.subject import Subject
from geomerge.steps import precondition

__all__ = ["stable_rate"]

_INPUTS = 128
_BATCH = 32
_PRODUCTS = 8  # the largest eigenvalue is needed to some percent
_PASSES = 5  # of a product with G, in forward passes
_SHARE = 1.0  # of 1 / eigenvalue; 3.8 is the limit without noise


def stable_rate(
    subject: Subject,
    metric: Metric,
    damping: float,
) -> float:
    """Return a learning rate at which the drift falls.

    Args:
        subject: The network; its start counts.
        metric: The metric there.
        damping: mu.
    """
    if isinstance(metric, KroneckerMetric):
        metric = metric.sharpened(damping)
    inputs = subject.manifold.sample(_INPUTS, subject.options.seed)
    exact = exact_metric(subject.network, subject.w, inputs.batches(_BATCH), subject.options.output)
    generator = torch.Generator().manual_seed(subject.options.seed)
    v = torch.randn(subject.network.n, generator=generator).to(subject.w)
    v[subject.network.n_parameters :] = 0
    largest = 0.0
    for _ in range(_PRODUCTS):
        u = precondition(metric, exact.product(v), damping)
        largest = float(u.norm() / v.norm())
        v = u / u.norm()
    subject.cost.add(_PRODUCTS * _PASSES * len(inputs))
    return _SHARE / largest if largest > 0 else float("inf")
