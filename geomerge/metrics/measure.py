"""A metric by its name."""

from __future__ import annotations

from torch import Tensor

from geomerge.data import Inputs
from geomerge.errors import OptionError, did_you_mean
from geomerge.metrics.base import EuclideanMetric, Metric
from geomerge.metrics.exact import exact_metric
from geomerge.metrics.gram import gram_metric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.networks.network import Network

__all__ = ["METRICS", "measure_metric"]

METRICS = ("kronecker", "exact", "gram", "euclidean")
_BATCH = 500  # inputs per pass
_GRAM_ROWS = 1024  # inputs times outputs: a Gram matrix decomposed within a second


def measure_metric(
    name: str,
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    output: str,
    seed: int,
) -> Metric:
    """Measure a metric of a network at w.

    Args:
        name: One of ``METRICS``.
        network: The network.
        w: Where.
        inputs: Of the manifold. The Gram form uses a sample of them where inputs times outputs
            would be more than 1024; the exact form keeps the activations of all of them.
        output: One of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        seed: Of that sample, and of the Kronecker form's random sign vectors.

    Returns:
        The metric.

    Raises:
        OptionError: If there is no metric of that name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.metrics import functional_change, measure_metric
        >>> _ = torch.manual_seed(0)
        >>> network = gm.Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> w, inputs = network.initial, gm.load_task("digits").train.inputs
        >>> metric = measure_metric("kronecker", network, w, inputs, "hellinger", seed=0)
        >>> step = 1e-2 * torch.randn(network.n)
        >>> x = inputs.batch(slice(None))
        >>> before, after = network.logits(w, x), network.logits(w + step, x)
        >>> change = functional_change(before, after, "hellinger")
        >>> bool(0.8 < metric.inner(step, step) / change < 1.25)  # predicted over measured
        True
    """
    if name == "kronecker":
        return estimate_kronecker(network, w, inputs.batches(_BATCH), output, seed)
    if name == "exact":
        return exact_metric(network, w, inputs.batches(_BATCH), output)
    if name == "gram":
        m = network.logits(w, inputs.batch(slice(0, 1))).shape[1]
        sample = inputs.sample(max(1, _GRAM_ROWS // m), seed)
        return gram_metric(network, w, sample.batch(slice(None)), output)
    if name == "euclidean":
        return EuclideanMetric()
    raise OptionError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}")
