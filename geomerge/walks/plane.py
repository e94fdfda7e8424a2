r"""A walk to a plane in weight space: prescribed moves, compensation, and an anchor.

Eq. (7) of arXiv 2012.09605 with v = P(w) - w pulls softly: the coordinates that matter go last,
and the final projection destroys what is left. Here each stage brings some weights exactly to
where the plane wants them; the others compensate,

.. math:: x = \arg\min_x \tfrac1N |J(d + x)|^2 + \mu|x|^2 \quad \text{on the free weights},

and then take the drift :math:`r = \phi(w) - \phi_0` that has gathered back, by steps
:math:`-(g + \mu I)^{-1} J'r / N` with momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metrics import Metric
from geomerge.steps import compensate, precondition
from geomerge.walks.state import StateFile
from geomerge.walks.walk import WalkPoint

__all__ = ["PlaneWalkOptions", "Prescription", "Stage", "walk_toward_plane"]

_COMPENSATION_STEPS = 10
_RECENT = 0.8  # memory of the drift, which differs from batch to batch
_WORSE, _LARGE = 4.0, 0.02  # times the stage's first drift, and of what leaves nothing: diverged
_SHORTEST = 2.0**-10  # of the learning rate
_NEW, _MOVED, _CORRECTED = "new", "moved", "corrected"  # how far a stage is


@dataclass(frozen=True)
class Prescription:
    """Where a stage wants some weights.

    Attributes:
        target: Weights, shape (n,); only those that are not free count.
        free: Mask of the weights that may move, shape (n,).
        left: Share of the way to the plane that remains afterwards.
        made_up: Weights whose free ones make up for the move already, shape (n,); None leaves that
            to the walk.
        prices: Shadow price of each budget that bound the stage.
    """

    target: Tensor
    free: Tensor
    left: float
    made_up: Tensor | None = None
    prices: Mapping[str, float] = field(default_factory=dict)


Stage: TypeAlias = Callable[[Tensor, Metric], Prescription]  # from a point and the metric there


@dataclass(frozen=True)
class PlaneWalkOptions:
    """Settings of a walk toward a plane.

    Attributes:
        damping: mu, of the compensation and of the steps against the drift.
        steps: Of the latter in all.
        learning_rate: Of the first such step; it falls linearly to zero over the walk.
        momentum: Share of the last step kept in the next.
        refresh: Stages between two measurements of the metric.
    """

    damping: float = 0.1
    steps: int = 3600
    learning_rate: float = 0.1
    momentum: float = 0.9
    refresh: int = 3


def walk_toward_plane(
    start: Tensor,  # (n,)
    stages: Sequence[Stage],
    metric_at: Callable[[Tensor], Metric],
    anchor: Callable[[Tensor], tuple[float, Tensor]],
    walk: PlaneWalkOptions,
    settle: Callable[[Tensor], Tensor] | None = None,
    large: float = 1.0,
    kept: StateFile | None = None,
) -> Iterator[WalkPoint]:
    """Walk from ``start`` through the stages, keeping the function that the anchor measures.

    Args:
        start: First point; it is not yielded.
        stages: What to bring where, from the point reached and the metric there.
        metric_at: Measures the metric at a point.
        anchor: Gives the drift at a point and v against it, such as
            :class:`~geomerge.walks.objectives.OutputDrift`.
        walk: Settings.
        settle: Applied to the weights after each prescribed move: running statistics.
        large: A drift that leaves nothing of the function. Where the drift rises by a share of it
            while it should fall, the walk goes back to its stage and on at half the learning rate.
        kept: Where the walk is, written by it now and then; the anchor is at its next batch
            already, number ``batches`` of the state's values, and the stages know what they took.

    Yields:
        Those that are left of two points per stage: after the prescribed move with its
        compensation, and after the steps against the drift. Weights that are not free are, bit for
        bit, where the stage wants them.

    Raises:
        NumericalError: If the drift rises however short the steps.
    """
    kept = StateFile() if kept is None else kept
    values, tensors = kept.state.values, kept.state.tensors
    w = tensors.setdefault("w", start)
    momentum = tensors.setdefault("momentum", torch.zeros_like(start))
    # As many after each stage, and after the last one twice as many.
    shares = [round(walk.steps * k / (len(stages) + 1)) for k in range(1, len(stages))]
    shares.append(walk.steps)
    done, caution = values.setdefault("done", 0), values.setdefault("caution", 1.0)
    if "measured" in tensors:
        metric = metric_at(tensors["measured"])
        blunt = metric.truncate(walk.damping)
    for k in range(values.get("stage", 0), len(stages)):
        phase = values.get("phase", _NEW)
        if phase == _NEW:
            if k % walk.refresh == 0:
                metric = metric_at(w)
                blunt = metric.truncate(walk.damping)
                tensors["measured"] = w
            wanted = stages[k](w, metric)
            before, w = w, _prescribed(w, blunt, wanted, walk.damping)
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
            limit = _WORSE * first + _LARGE * large
            recent = _RECENT * recent + (1 - _RECENT) * drift
            if not recent < limit:
                # Steps too long for this network: back to where the stage began, with shorter ones.
                caution /= 2
                if caution < _SHORTEST:
                    raise NumericalError(
                        f"the functional change rises to {recent:.3g} however short the steps, "
                        f"expected less than {limit:.3g}; give a larger --damping"
                    )
                w, momentum, recent = before, torch.zeros_like(w), None
            else:
                momentum = walk.momentum * momentum + torch.where(wanted.free, v, 0.0)
                rate = caution * walk.learning_rate * (1 - done / walk.steps)
                tangent = rate * precondition(blunt, momentum, walk.damping)
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
    """Bring the weights that are not free to their target; the free ones compensate."""
    if wanted.made_up is not None:
        return torch.where(wanted.free, wanted.made_up, wanted.target)
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
