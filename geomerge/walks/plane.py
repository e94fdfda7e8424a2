r"""Walk to a plane in weight space: prescribed moves, compensation, and drift correction.

In eq. (7) of arXiv 2012.09605 with v = P(w) - w the important coordinates move last, and the final
projection destroys the function. Here each stage moves some weights exactly onto the plane and
compensates with the others,

.. math:: x = \arg\min_x \tfrac1N |J(d + x)|^2 + \mu|x|^2 \quad \text{on the free weights},

Steps :math:`-(g + \mu I)^{-1} J'r / N` with momentum then reduce the accumulated drift
:math:`r = \phi(w) - \phi_0`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metrics import Metric
from geomerge.steps import compensate, precondition
from geomerge.walks.state import StateFile
from geomerge.walks.walk import WalkPoint

__all__ = ["PlaneWalkOptions", "Prescription", "Stage", "walk_toward_plane"]

_COMPENSATION_STEPS = 10
_RECENT = 0.8  # decay of the running mean of the drift, which varies between batches
# A stage has diverged if its drift exceeds _WORSE times its first drift plus _LARGE times the
# largest possible one.
_WORSE, _LARGE = 4.0, 0.02
_SHORTEST = 2.0**-10  # smallest factor of the learning rate
_NEW, _MOVED, _CORRECTED = "new", "moved", "corrected"  # phases of a stage


@dataclass(frozen=True)
class Prescription:
    """Prescribed weights of a stage.

    Attributes:
        target: Weights, shape (n,); only those outside of ``free`` are used.
        free: Mask of the weights that may move, shape (n,).
        left: Share of the distance to the plane that remains afterwards.
        compensated: Weights whose free entries already compensate the move, shape (n,); if None,
            the walk computes the compensation.
        prices: Shadow prices of the stage's active budgets, by name.
    """

    target: Tensor
    free: Tensor
    left: float
    compensated: Tensor | None = None
    prices: Mapping[str, float] = field(default_factory=dict)


Stage: TypeAlias = Callable[
    [Tensor, Metric], Prescription
]  # function of a point and the metric there


@dataclass(frozen=True)
class PlaneWalkOptions:
    """Settings of a walk toward a plane.

    Attributes:
        damping: Damping mu of the compensation and of the steps against the drift.
        steps: Number of steps against the drift in all stages.
        learning_rate: Learning rate of the first of these steps; it falls linearly to zero.
        momentum: Weight of the previous direction in the next.
        refresh: Number of stages between two measurements of the metric.
        large: Largest possible drift, that of a lost function. If the drift rises by a share of it,
            the stage is repeated from its start with half the learning rate.
    """

    damping: float = 0.1
    steps: int = 3600
    learning_rate: float = 0.1
    momentum: float = 0.9
    refresh: int = 3
    large: float = 1.0


def walk_toward_plane(
    start: Tensor,  # (n,)
    stages: Sequence[Stage],
    metric_at: Callable[[Tensor], Metric],
    anchor: Callable[[Tensor], tuple[float, Tensor]],
    walk: PlaneWalkOptions,
    settle: Callable[[Tensor], Tensor] | None = None,
    kept: StateFile | None = None,
    **changes: Any,
) -> Iterator[WalkPoint]:
    """Walk from ``start`` through the stages while preserving the anchor's function.

    Args:
        start: First point, not yielded.
        stages: Functions of a point and the metric there that return the prescribed weights.
        metric_at: Function that measures the metric at a point.
        anchor: Function that returns the drift at a point and v against it, such as
            :class:`~geomerge.walks.objectives.OutputDrift`.
        walk: Settings of the walk.
        settle: Function that updates running statistics after each prescribed move.
        kept: State of the walk on disk, written at intervals. To resume, pass an anchor that is at
            batch number ``batches`` of the state's values, and restored stages.
        changes: Settings by name that replace those of ``walk``.

    Yields:
        The remaining points, of two per stage: after the prescribed move with its compensation, and
        after the drift correction. Weights that are not free have exactly their prescribed values.

    Raises:
        NumericalError: If the drift rises for every learning rate.
    """
    walk = replace(walk, **changes)
    kept = StateFile() if kept is None else kept
    values, tensors = kept.state.values, kept.state.tensors
    w = tensors.setdefault("w", start)
    momentum = tensors.setdefault("momentum", torch.zeros_like(start))
    # The same number of steps after each stage, and twice as many after the last.
    shares = [round(walk.steps * k / (len(stages) + 1)) for k in range(1, len(stages))]
    shares.append(walk.steps)
    done, caution = values.setdefault("done", 0), values.setdefault("caution", 1.0)
    if "measured" in tensors:
        metric = metric_at(tensors["measured"])
        truncated = metric.truncate(walk.damping)
    for k in range(values.get("stage", 0), len(stages)):
        phase = values.get("phase", _NEW)
        if phase == _NEW:
            if k % walk.refresh == 0:
                metric = metric_at(w)
                truncated = metric.truncate(walk.damping)
                tensors["measured"] = w
            wanted = stages[k](w, metric)
            before, w = w, _prescribed(w, truncated, wanted, walk.damping)
            values |= {"stage": k, "phase": _MOVED, "left": wanted.left}
            values["prices"] = dict(wanted.prices)
            tensors |= {"w": w, "free": wanted.free}
            yield _point(before, w, metric, walk.damping, wanted)
        else:
            prices = values["prices"]
            wanted = Prescription(w, tensors["free"], values["left"], prices=prices)
        if phase != _CORRECTED:
            w = w if settle is None else settle(w)
            momentum = torch.where(wanted.free, momentum, 0.0)
            values |= {"phase": _CORRECTED, "first": None, "recent": None}
            tensors |= {"w": w, "momentum": momentum, "before": w}
        before, first, recent = tensors["before"], values["first"], values["recent"]
        while done < shares[k]:
            drift, v = anchor(w)
            if recent is None:
                first = recent = drift
            limit = _WORSE * first + _LARGE * walk.large
            recent = _RECENT * recent + (1 - _RECENT) * drift
            if not recent < limit:
                # The steps are too long for this network: repeat the stage with shorter ones.
                caution /= 2
                if caution < _SHORTEST:
                    raise NumericalError(
                        f"the functional change rises to {recent:.3g} for every learning rate, "
                        f"expected less than {limit:.3g}; give a larger `damping`"
                    )
                w, momentum, recent = before, torch.zeros_like(w), None
            else:
                momentum = walk.momentum * momentum + torch.where(wanted.free, v, 0.0)
                rate = caution * walk.learning_rate * (1 - done / walk.steps)
                tangent = rate * precondition(truncated, momentum, walk.damping)
                w = torch.where(wanted.free, w + tangent, w)
                done += 1
            values |= {"done": done, "caution": caution, "first": first, "recent": recent}
            values["batches"] = values.get("batches", 0) + 1
            tensors |= {"w": w, "momentum": momentum}
            if kept.due:
                kept.write()
        values |= {"stage": k + 1, "phase": _NEW}
        yield _point(before, w, metric, walk.damping, wanted)


def _prescribed(
    w: Tensor,  # (n,)
    metric: Metric,
    wanted: Prescription,
    damping: float,
) -> Tensor:  # (n,)
    """Move all weights that are not free to their targets and compensate with the free ones."""
    if wanted.compensated is not None:
        return torch.where(wanted.free, wanted.compensated, wanted.target)
    d = torch.where(wanted.free, 0.0, wanted.target - w)
    x = compensate(
        metric.mv,
        -metric.mv(d),
        wanted.free,
        damping,
        steps=_COMPENSATION_STEPS,
        precondition=lambda v: precondition(metric, v, damping),
    ).x
    return torch.where(wanted.free, w + x, wanted.target)


def _point(
    before: Tensor,  # (n,)
    after: Tensor,  # (n,)
    metric: Metric,
    damping: float,
    wanted: Prescription,
) -> WalkPoint:
    step = after - before
    predicted = max(metric.inner(step, step), 0.0)
    norm = float(step.norm())
    return WalkPoint(after, norm, predicted, damping, wanted.left, wanted.prices)
