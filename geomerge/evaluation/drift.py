"""Functional change of a network between weights, measured on inputs or predicted by a sketch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.evaluation.measures import score
from geomerge.evaluation.pick import Score
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.metrics import functional_change
from geomerge.networks.network import Network

__all__ = [
    "LARGE",
    "REPORTED",
    "Probe",
    "Scorer",
    "function_change",
    "mean_kl",
    "predicted_change",
    "predicted_on_line",
    "probe_inputs",
    "probe_of",
    "select_scores",
]

LARGE = 10**6  # weights of a network from which on measurements beside a walk are on fewer inputs
REPORTED = 256  # inputs on which a report measures changes
_FEW = 64


class Probe:
    """Meter of the functional change between two points, on a few inputs of one task.

    The logits of the first and the last point are cached: each step begins where the last one
    ended, and drifts are all from one point.

    Args:
        network: Network with the outputs of the task.
        inputs: Inputs of the task, of which the first are used.
        output: Output phi whose change is measured, such as ``"hellinger"``.
        count: Largest number of inputs; None takes :func:`probe_inputs`.
    """

    def __init__(
        self, network: Network, inputs: Inputs, output: str, count: int | None = None
    ) -> None:
        self._network = network
        count = count or probe_inputs(network)
        self._x = inputs.batch(slice(0, min(count, inputs.at_once or count)))
        self._output = output
        self._known: list[tuple[Tensor, Tensor]] = []  # points and their logits

    def __call__(
        self,
        before: Tensor,  # (n,)
        after: Tensor,  # (n,)
    ) -> float:
        """Return the mean |phi(after) - phi(before)|^2."""
        at_start = next((logits for w, logits in self._known if w is before), None)
        if at_start is None:
            at_start = self._network.logits(before, self._x)
            self._known = [*self._known[:1], (before, at_start)]
        logits = self._network.logits(after, self._x)
        self._known = [self._known[0], (after, logits)]
        return functional_change(at_start, logits, self._output)


def probe_inputs(network: Network) -> int:
    """Return the number of inputs on which the change of a step is measured."""
    return REPORTED if network.n < LARGE else _FEW


def probe_of(expert: Expert, output: str, count: int | None = None) -> Probe | None:
    """Return a probe of an expert's function, on its selection split, else on its inputs.

    Args:
        expert: Expert with a task or inputs; None is returned for one without either.
        output: Output whose change is measured.
        count: Largest number of inputs; None takes :func:`probe_inputs`.
    """
    if expert.task is not None:
        return Probe(expert.network, expert.task.select.inputs, output, count)
    if expert.inputs is not None:
        return Probe(expert.network, expert.inputs, output, count)
    return None


def predicted_change(
    expert: Expert,
    w: Tensor,  # (n,)
) -> float | None:
    """Return the functional change that an expert's sketch predicts; None without a sketch."""
    if expert.sketch is None:
        return None
    change = expert.sketch.metric.squared_distance(w, expert.weights)
    paged.give_back()
    return change


def predicted_on_line(
    expert: Expert,
    first: Tensor,  # (n,)
    last: Tensor,  # (n,)
) -> Callable[[float], float | None]:
    """Return the predicted functional change as a function of the share of a line's last point.

    It is a quadratic function of the share, which three points of the line determine.
    """
    ends = [predicted_change(expert, w) for w in (first, paged.lerp(first, last, 0.5), last)]
    at_first, at_middle, at_last = (change or 0.0 for change in ends)

    def change(share: float) -> float | None:
        if expert.sketch is None:
            return None
        bend = 2 * (at_first + at_last) - 4 * at_middle
        line = (1 - share) * at_first + share * at_last
        return max(line - share * (1 - share) * bend, 0.0)

    return change


def function_change(
    expert: Expert,
    w: Tensor,  # (n,)
    output: str,
) -> dict[str, float | None]:
    """Return the functional change from an expert to other weights, on the expert's own inputs.

    Args:
        expert: Expert with a task, whose selection split is used, or with inputs.
        w: Weights that are compared with the expert's.
        output: Output phi whose change is measured.

    Returns:
        ``"measured"``, the mean |phi(w) - phi(w_0)|^2 of a few inputs, and ``"kl"``, the mean
        KL(w_0 || w) of all inputs of the selection split; None where it cannot be measured.
    """
    probe = probe_of(expert, output, REPORTED)
    kl = None
    if expert.task is not None:
        kl = mean_kl(expert.network, expert.weights, w, expert.task.select.inputs)
    return {"measured": None if probe is None else probe(expert.weights, w), "kl": kl}


def mean_kl(
    network: Network,
    before: Tensor,  # (n,)
    after: Tensor,  # (n,)
    inputs: Inputs,
) -> float:
    """Return the mean KL(before || after) of a network's output distributions, in nats.

    Args:
        network: Network with the outputs of the task.
        before: Weights of the reference distribution.
        after: Weights of the other distribution.
        inputs: Inputs of the mean.
    """
    total, count = 0.0, 0
    for _, x in inputs.parts(2000):
        target = network.logits(before, x).double().log_softmax(dim=1)
        log_p = network.logits(after, x).double().log_softmax(dim=1)
        kl = torch.nn.functional.kl_div(log_p, target, log_target=True, reduction="batchmean")
        total += len(target) * float(kl)
        count += len(target)
    return total / count


def select_scores(
    experts: Sequence[Expert],
    w: Tensor,  # (n,)
) -> dict[str, float | None]:
    """Return the score on each expert's selection split by name, None without a task."""
    return {e.name: score(e.network, w, e.task.select) if e.task else None for e in experts}


class Scorer:
    """Meter of points for a pick: scores on selection splits, drifts and distances.

    Args:
        experts: Experts from which drifts and distances are measured.
        output: Output whose change is the drift.
    """

    def __init__(self, experts: Sequence[Expert], output: str) -> None:
        self._experts = experts
        self._probes = {e.name: probe_of(e, output) for e in experts}

    def on_line(
        self,
        first: Tensor,  # (n,)
        last: Tensor,  # (n,)
    ) -> Callable[[float, Tensor], Score]:
        """Return the meter of points of a line by their share of its last point and weights."""
        unseen = [e for e in self._experts if self._probes[e.name] is None]
        changes = {e.name: predicted_on_line(e, first, last) for e in unseen}
        return lambda share, w: self(w, {name: change(share) for name, change in changes.items()})

    def __call__(
        self,
        w: Tensor,  # (n,)
        drifts: Mapping[str, float | None] | None = None,
    ) -> Score:
        """Return the measurements of a point.

        Args:
            w: Weights.
            drifts: Drifts that are known, by the names of their experts.
        """
        known = drifts or {}
        gaps = {e.name: paged.distance(w, e.weights) for e in self._experts}
        total = sum(gaps.values()) or 1.0
        return Score(
            select_scores(self._experts, w),
            {
                e.name: known[e.name] if e.name in known else self._drift(e, w)
                for e in self._experts
            },
            {name: gap / total for name, gap in gaps.items()},
            as_shares=any(e.task is not None and e.task.measure == "loss" for e in self._experts),
        )

    def _drift(self, expert: Expert, w: Tensor) -> float | None:
        probe = self._probes[expert.name]
        return predicted_change(expert, w) if probe is None else probe(expert.weights, w)
