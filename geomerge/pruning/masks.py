"""Masks of pruned weights, and saliencies of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geomerge.errors import OptionError
from geomerge.metrics import Metric
from geomerge.networks.network import Network

__all__ = [
    "SALIENCIES",
    "SparsityPattern",
    "parse_nm",
    "prunable",
    "prune_form",
    "removable",
    "saliency",
    "sparsity",
    "weakest",
    "zeros",
]


def prunable(network: Network) -> dict[str, slice]:
    """Return the places of prunable weights: those of linear layers and convolutions.

    Frozen weights are kept. So are biases and norms, since they hardly contribute to the size.

    Args:
        network: Network.

    Returns:
        Places in the weight vector, by name of the tensor.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = network.module.named_modules()
    names = [f"{name}.weight".lstrip(".") for name, layer in layers if isinstance(layer, kinds)]
    names = [name for name in names if name not in network.frozen]
    return {name: network.slices[name] for name in names if name in network.slices}


def zeros(
    w: Tensor,  # (n,)
    places: Mapping[str, slice],
) -> Tensor:  # (n,), bool
    """Return a mask of the prunable weights that are exactly zero."""
    found = torch.zeros_like(w, dtype=torch.bool)
    for place in places.values():
        found[place] = w[place] == 0
    return found


def sparsity(
    w: Tensor,  # (n,)
    places: Mapping[str, slice],
) -> float:
    """Return the share of weights that are exactly zero, in [0, 1].

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.pruning.masks import prunable, sparsity
        >>> network = gm.Network(nn.Linear(4, 2))
        >>> w = torch.ones(network.n)
        >>> w[:6] = 0.0
        >>> sparsity(w, prunable(network))  # six of eight weights; biases are not counted
        0.75
    """
    zeros = sum(int((w[place] == 0).sum()) for place in places.values())
    count: int = sum(place.stop - place.start for place in places.values())
    return zeros / max(count, 1)


def parse_nm(text: str) -> tuple[int, int]:
    """Parse an N:M pattern such as ``"2:4"``, which keeps two weights of any four neighbours.

    Raises:
        OptionError: If the text has another form.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise OptionError(f"expected `nm` to be N:M such as 2:4, N of M weights stay, got {text!r}")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class SparsityPattern:
    """Pattern of the weights that are zero in a sparse network.

    Attributes:
        share: Share of zeros among the prunable weights, in (0, 1); unused with ``nm``.
        per_layer: Whether the share holds for every layer instead of for the whole network.
        nm: Numbers (N, M) of a pattern that keeps N of M neighbours along a layer's inputs, as for
            sparse tensor cores (Mishra et al. 2021). Layers whose number of inputs is not divisible
            by M are kept dense.
    """

    share: float = 0.0
    per_layer: bool = False
    nm: tuple[int, int] | None = None


def removable(
    scores: Tensor,  # (n,)
    network: Network,
    places: Mapping[str, slice],
    pattern: SparsityPattern,
) -> Tensor:  # (n,), bool
    """Return the mask of the weights with the lowest scores under a sparsity pattern.

    Args:
        scores: Scores of all weights.
        network: Network.
        places: Places of the prunable weights.
        pattern: Pattern of the removed weights.

    Returns:
        Mask, True for weights to remove.
    """
    gone = torch.zeros_like(scores, dtype=torch.bool)
    share = pattern.share
    if pattern.nm is not None:
        for name, place in places.items():
            matrix = scores[place].view(network.shapes[name])
            gone[place] = _of_neighbours(matrix, pattern.nm).reshape(-1)
    elif pattern.per_layer:
        for place in places.values():
            gone[place] = _lowest(scores[place], round(share * (place.stop - place.start)))
    else:
        index = torch.cat([torch.arange(p.start, p.stop) for p in places.values()])
        index = index.to(scores.device)
        gone[index] = _lowest(scores[index], round(share * len(index)))
    return gone


def weakest(
    scores: Tensor,  # (n,)
    candidates: Tensor,  # (n,), bool
    count: int,
) -> Tensor:  # (n,), bool
    """Return a mask of the candidates with the lowest scores."""
    index = candidates.nonzero()[:, 0]
    found = torch.zeros_like(candidates)
    found[index] = _lowest(scores[index], count)
    return found


def _lowest(
    scores: Tensor,  # (k,)
    count: int,
) -> Tensor:  # (k,), bool
    found = torch.zeros_like(scores, dtype=torch.bool)
    # A stable sort breaks ties in the same way on every machine.
    found[scores.sort(stable=True).indices[:count]] = True
    return found


def _of_neighbours(
    scores: Tensor,  # (d_out, d_in, ...)
    nm: tuple[int, int],
) -> Tensor:  # bool, shaped like scores
    n, m = nm
    if scores.shape[1] % m:
        return torch.zeros_like(scores, dtype=torch.bool)
    inputs_last = scores.movedim(1, -1)
    groups = inputs_last.reshape(-1, m)
    order = groups.sort(dim=1, stable=True).indices[:, : m - n]
    gone = torch.zeros_like(groups, dtype=torch.bool).scatter(1, order, True)
    return gone.view(inputs_last.shape).movedim(-1, 1)


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
        w: Weights.
        metric: Metric at the weights. Metrics other than the Kronecker metric give the magnitude.
        kind: Name of the saliency: ``"obs"``, ``"obd"`` or ``"magnitude"``.
        damping: Damping mu.

    Returns:
        Half the squared functional change; squares of the weights for ``"magnitude"``.
    """
    squares = w.square()
    if kind == "magnitude":
        return squares
    if kind == "obd":
        diagonal = metric.diagonal_of(lambda s: s)
        return squares if diagonal is None else squares * diagonal / 2
    diagonal = metric.diagonal_of(lambda s: 1 / (s + damping))
    return squares if diagonal is None else squares / (2 * diagonal)


def prune_form(
    network: Network,
    w: Tensor,  # (n,)
    kept: Tensor,  # (n,), bool
) -> dict[str, Tensor]:
    """Return a state dict in the form of ``torch.nn.utils.prune``.

    A tensor with masked weights is stored as ``NAME_orig`` and ``NAME_mask``, all others under
    their own names. The state dict loads into a plain module on which ``prune.custom_from_mask``
    or ``prune.identity`` was called for the same tensors.

    Args:
        network: Network.
        w: Weights of the network; masked ones are stored as zero.
        kept: Mask of the kept weights.

    Returns:
        Tensors on the CPU; masks have the dtype of their tensors.

    Raises:
        OptionError: If ``kept`` is not a mask of shape (n,), or excludes a running statistic.
    """
    if kept.shape != (network.n,) or kept.dtype != torch.bool:
        raise OptionError(
            f"expected a mask of {network.n} bools, got {kept.dtype} of shape "
            f"{tuple(kept.shape)}; make it with the network's own length"
        )
    if not kept[network.n_parameters :].all():
        raise OptionError(
            "expected all running statistics to stay, got a mask without some; only parameters "
            "can be pruned"
        )
    kept = kept.to(w.device)
    masks = {name: mask for name, mask in network.unravel(kept).items() if not mask.all()}
    form: dict[str, Tensor] = {}
    for name, tensor in network.state_dict(torch.where(kept, w, 0.0)).items():
        if name in masks:
            form[f"{name}_orig"] = tensor
            form[f"{name}_mask"] = masks[name].to(tensor)
        else:
            form[name] = tensor
    return form
