r"""What the function loses without a unit, or at any other weights: predicted and measured.

The metric predicts :math:`|\phi(w + d) - \phi(w)|^2 \approx d'gd`, exact to second order in d. What
is taken away whole is no small d, so how far that holds is to be measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from geomerge.metrics import KroneckerMetric
from geomerge.pruning.held_out import HeldOut
from geomerge.pruning.obs import Consumers, layer_of
from geomerge.pruning.parts import Part, Role
from geomerge.pruning.units import Units

__all__ = ["column_costs", "damage_of", "rank_correlation", "unit_damage"]

_MEASURED = 64  # units of a layer that are measured, at most


def damage_of(
    held_out: HeldOut,
    w: Tensor,  # (n,)
) -> dict[str, float | None]:
    """Measure what other weights do to the function.

    Args:
        held_out: What to measure on.
        w: The other weights.

    Returns:
        ``measured``, the mean of |phi - phi_0|^2, None where outputs stop being finite;
        ``agreement``, the share of labels that stay, and ``accuracy``, in [0, 1].
    """
    found = held_out.compare(w)
    return {
        "measured": found.drift if math.isfinite(found.drift) else None,
        "agreement": found.agreement,
        "accuracy": found.accuracy,
    }


def unit_damage(
    units: Units,
    gone: Sequence[int],
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
    held_out: HeldOut,
) -> dict[str, Any]:
    """Predict what removing each unit of a layer costs, and measure it for a sample.

    Args:
        units: The units.
        gone: Those that are zero already; they are left out.
        metric: At the weights.
        w: The weights.
        held_out: What to measure on.

    Returns:
        Names and number of the units, and for each: ``predicted`` without compensation,
        ``compensated`` (predicted, where the other columns of the layers that read it make up for
        it) and ``measured`` without compensation, None where it was not measured: of more than 64
        units a sample is, evenly spread from the cheapest to the costliest by prediction.
        ``correlation`` is Spearman's, of predicted and measured.
    """
    there = sorted(set(range(units.count)) - set(gone))
    predicted = column_costs(units, metric, w)
    # The damping of the compensated cost can lift it over the cost of doing nothing.
    compensated = torch.minimum(Consumers(units, metric, w, gone).costs(), predicted)
    order = sorted(there, key=lambda unit: float(predicted[unit]))
    spread = np.linspace(0, len(order) - 1, min(len(order), _MEASURED)).round().astype(int)
    measured: dict[int, float | None] = {}
    for unit in sorted(order[k] for k in spread):
        without = w.clone()
        units.clear(without, [unit])
        measured[unit] = damage_of(held_out, without)["measured"]
    rows = [
        {
            "unit": unit,
            "predicted": float(predicted[unit]),
            "compensated": float(compensated[unit]),
            "measured": measured.get(unit),
        }
        for unit in there
    ]
    return {
        "layer": units.layer,
        "layers": list(units.layers),
        "count": units.count,
        "gone": len(gone),
        "measured": len(measured),
        "correlation": rank_correlation([(row["predicted"], row["measured"]) for row in rows]),
        "units": rows,
    }


def column_costs(
    units: Units,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
) -> Tensor:  # (units,), float64
    r"""Return d'gd for each unit, d taking away the weights that read it and nothing else.

    That is :math:`\mathrm{tr}(B\,W_P A_{PP} W_P')` for its columns P of each matrix W that reads
    it. Matrices that no factors of the metric cover alone count by the metric's diagonal.

    Args:
        units: The units.
        metric: At the weights.
        w: The weights.
    """
    total = torch.zeros(units.count, dtype=torch.float64)
    for part in units.parts:
        if part.role is Role.CONSUMER:
            total += _part_costs(part, metric, w).cpu()
    return total.clamp(min=0)  # rounding


def rank_correlation(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Return Spearman's rank correlation, None of fewer than three pairs or where all are equal."""
    known = [pair for pair in pairs if None not in pair]
    if len(known) < 3 or any(len(set(values)) < 2 for values in zip(*known, strict=True)):
        return None
    return float(spearmanr(*zip(*known, strict=True)).statistic)


def _part_costs(
    part: Part,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
) -> Tensor:  # (units,), float64
    layer = layer_of(part, metric)
    if layer is None:
        squares = (w.square() * metric.diagonal_of(lambda s: s))[part.span].view(part.shape)
        entries = squares.movedim(part.dim, 0).reshape(part.shape[part.dim], -1).double()
        return entries.sum(dim=1)[part.indices.to(w.device)].sum(dim=1)
    columns = part.columns().to(w.device)  # (units, k)
    matrix = layer.matrix(w)
    weighed = layer.outputs.dense() @ matrix
    u = layer.inputs.vectors[columns]  # (units, k, r): A itself may be too large to write out
    tail = layer.inputs.tail if not layer.inputs.full else 0.0
    eye = torch.eye(columns.shape[1], dtype=u.dtype, device=u.device)
    blocks = (u * (layer.inputs.values - tail)) @ u.mT + tail * eye  # (units, k, k)
    pairs = torch.einsum("ouk,oul->ukl", matrix[:, columns], weighed[:, columns])
    return (pairs.double() * blocks.double()).sum(dim=(1, 2))
