"""BatchNorm's running statistics, measured again at a point of weight space."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geomerge.data import Inputs
from geomerge.networks.batches import concat, is_plain, pass_to
from geomerge.networks.network import Network, inputs_at_once

__all__ = ["BATCH", "BN", "batch_statistics", "has_statistics", "re_estimate", "statistics_gap"]

BN = ("keep", "re-estimate")  # what may happen to running statistics
_INPUTS = 2000  # inputs of each manifold
BATCH = 500
_LEAST = 1e-5  # added to variances, as the layers do
_COMPARED = 500  # inputs whose statistics are compared with running ones


def has_statistics(network: Network) -> bool:
    """Return whether a network holds running statistics."""
    return bool(_running(network))


@contextmanager
def batch_statistics(network: Network) -> Iterator[None]:
    """Normalise every batch by its own statistics, as in training, inside the context.

    Running statistics are neither used nor changed, and those of frozen layers stay in use.

    Args:
        network: Network whose passes inside the context are in training mode of BatchNorm alone.
    """
    layers = _running(network)
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer in layers:
            layer.training, layer.track_running_stats = False, True


def re_estimate(
    network: Network,
    w: Tensor,  # (n,)
    manifolds: Sequence[Inputs],
    seed: int = 0,
) -> Tensor:  # (n,)
    """Return the weights with running statistics as inputs of all manifolds, mixed, make them.

    Every batch holds as many inputs of each manifold, as REPAIR and stochastic weight averaging
    do it (Jordan et al. 2022; Izmailov et al. 2018); those of a small one come again. Dropout stays
    off; no other weight changes, and no statistics of frozen layers or of layers that these inputs
    do not pass. Fewer than two inputs have none.

    Args:
        network: The network.
        w: Its weights.
        manifolds: Inputs of each task.
        seed: Chooses them.
    """
    samples = [inputs.sample(_INPUTS, seed) for inputs in manifolds]
    plain = [s.shape for s in samples if is_plain(s.shape)]  # not texts, whose padding would count
    most = min([BATCH, *map(inputs_at_once, plain)])
    share = max(1, most // len(samples))
    w = w.clone()
    module = network.shared_module(w)
    layers = _running(network)
    if sum(len(s) for s in samples) < 2:
        return w
    before = [copy.deepcopy(layer.state_dict()) for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
        layer.train()
    try:
        with torch.no_grad():
            longest = max(len(s) for s in samples)
            share = min(share, longest)  # and whole batches only: all count the same
            for start in range(0, longest - share + 1, share):
                index = torch.arange(start, start + share)
                pass_to(module, concat([s.batch(index % len(s)) for s in samples]))
    finally:
        for layer, momentum, state in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            if not layer.num_batches_tracked:
                layer.load_state_dict(state)
        module.eval()
    return w


def statistics_gap(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
) -> float:
    """Return how far inputs are from those that a network was trained on, by running statistics.

    That is KL(running || measured) of the Gaussian of each channel, the median of a layer's
    channels, and the largest of the layers. Of two ResNet20 it is up to 0.005 for their own images,
    0.015 for those of the other's classes of CIFAR-10 and 0.07 for noise
    (``benchmarks/resnet20.py``).

    Args:
        network: Network with running statistics.
        w: Its weights.
        inputs: Inputs. One alone has no statistics, and is infinitely far.
    """
    if len(inputs) < 2:
        return math.inf
    v = re_estimate(network, w, [inputs.sample(_COMPARED, 0)])
    found = []
    for name, place in network.slices.items():
        if not name.endswith("running_mean"):
            continue
        spread = network.slices[name.replace("running_mean", "running_var")]
        own, other = (x[spread].double() + _LEAST for x in (w, v))
        apart = (w[place].double() - v[place].double()).square() / other
        kl = (own / other - 1 - (own / other).log() + apart) / 2
        found.append(float(kl.median()))
    return max(found, default=0.0)


def _running(network: Network) -> list[nn.modules.batchnorm._BatchNorm]:
    kind = nn.modules.batchnorm._BatchNorm
    return [
        layer
        for name, layer in network.module.named_modules()
        if isinstance(layer, kind)
        and layer.running_mean is not None
        and f"{name}.running_mean".lstrip(".") not in network.frozen
    ]
