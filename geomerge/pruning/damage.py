r"""Damage of removing weights and units, predicted by the metric and measured.

The metric predicts :math:`|\phi(w + d) - \phi(w)|^2 \approx d'gd`, exact to second order in d. The
removal of a whole unit is not a small d, so the prediction is compared with a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from geomerge.metrics import KroneckerMetric
from geomerge.pruning.held_out import HeldOut
from geomerge.pruning.obs import Consumers, layer_of
from geomerge.pruning.parts import Part, Role
from geomerge.pruning.units import Units

__all__ = [
    "Damage",
    "LayerUnitsDamage",
    "UnitDamage",
    "column_costs",
    "damage_of",
    "rank_correlation",
    "unit_damage",
]

_MEASURED = 64  # largest number of units of a layer that are measured


@dataclass(frozen=True)
class Damage:
    """Change of the function and of predicted labels on held-out inputs.

    Attributes:
        predicted: Functional change predicted by the metric; None without a prediction.
        measured: Mean |phi - phi_0|^2; None if outputs are not finite.
        agreement: Share of unchanged predicted labels, in [0, 1].
        accuracy: Accuracy, in [0, 1].
    """

    predicted: float | None
    measured: float | None
    agreement: float
    accuracy: float


@dataclass(frozen=True)
class UnitDamage:
    """Functional change by the removal of one unit.

    Attributes:
        unit: Index of the unit.
        predicted: Change predicted by the metric, without compensation.
        compensated: Change predicted with compensation by the consumers' other columns.
        measured: Measured change without compensation; None if not measured or not finite.
    """

    unit: int
    predicted: float
    compensated: float
    measured: float | None


@dataclass(frozen=True)
class LayerUnitsDamage:
    """Functional changes by the removal of each unit of a layer.

    Attributes:
        layer: Name of the set of units.
        layers: Names of all tied layers.
        count: Number of units.
        gone: Number of units that are already zero and excluded.
        measured: Number of units whose removal was measured.
        correlation: Spearman's rank correlation of predicted and measured changes; None if it is
            not defined.
        units: Damage of each unit.
    """

    layer: str
    layers: list[str]
    count: int
    gone: int
    measured: int
    correlation: float | None
    units: list[UnitDamage]


def damage_of(
    held_out: HeldOut,
    w: Tensor,  # (n,)
    predicted: float | None = None,
) -> Damage:
    """Measure the change of the function and of the labels at other weights.

    Args:
        held_out: Held-out examples.
        w: Other weights.
        predicted: Functional change by the metric.
    """
    change = held_out.compare(w)
    measured = change.drift if math.isfinite(change.drift) else None
    return Damage(predicted, measured, change.agreement, change.accuracy)


def unit_damage(
    units: Units,
    gone: Sequence[int],
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
    held_out: HeldOut,
) -> LayerUnitsDamage:
    """Predict the damage of removing each unit of a layer, and measure that of a sample.

    Args:
        units: Units of the layer.
        gone: Units that are already zero; they are excluded.
        metric: Metric at the weights.
        w: Weights.
        held_out: Held-out examples.

    Returns:
        Damage of each unit. If there are more than 64, a sample is measured, evenly spaced in the
        order of predicted damage.
    """
    present = sorted(set(range(units.count)) - set(gone))
    predicted = column_costs(units, metric, w)
    # Damping can raise the compensated cost above the cost without compensation.
    compensated = torch.minimum(Consumers(units, metric, w, gone).costs(), predicted)
    order = sorted(present, key=lambda unit: float(predicted[unit]))
    spread = np.linspace(0, len(order) - 1, min(len(order), _MEASURED)).round().astype(int)
    measured: dict[int, float | None] = {}
    for unit in sorted(order[k] for k in spread):
        without = w.clone()
        units.clear(without, [unit])
        measured[unit] = damage_of(held_out, without).measured
    rows = [
        UnitDamage(unit, float(predicted[unit]), float(compensated[unit]), measured.get(unit))
        for unit in present
    ]
    correlation = rank_correlation([(row.predicted, row.measured) for row in rows])
    return LayerUnitsDamage(
        units.layer, list(units.layers), units.count, len(gone), len(measured), correlation, rows
    )


def column_costs(
    units: Units,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
) -> Tensor:  # (units,), float64
    r"""Return d'gd for each unit, with the d that sets its consuming weights to zero.

    It is :math:`\mathrm{tr}(B\,W_P A_{PP} W_P')` for the unit's columns P of each consumer's matrix
    W. For matrices without Kronecker factors the metric's diagonal is used.

    Args:
        units: Units.
        metric: Metric at the weights.
        w: Weights.
    """
    total = torch.zeros(units.count, dtype=torch.float64)
    for part in units.parts:
        if part.role is Role.CONSUMER:
            total += _part_costs(part, metric, w).cpu()
    return total.clamp(min=0)  # negative only by rounding


def rank_correlation(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Return Spearman's rank correlation; None for fewer than three pairs or equal values."""
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
    u = layer.inputs.vectors[columns]  # (units, k, r): A may be too large to form
    tail = layer.inputs.tail if not layer.inputs.full else 0.0
    eye = torch.eye(columns.shape[1], dtype=u.dtype, device=u.device)
    blocks = (u * (layer.inputs.values - tail)) @ u.mT + tail * eye  # (units, k, k)
    pairs = torch.einsum("ouk,oul->ukl", matrix[:, columns], weighed[:, columns])
    return (pairs.double() * blocks.double()).sum(dim=(1, 2))
