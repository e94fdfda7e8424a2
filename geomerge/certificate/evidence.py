"""What a certificate says of networks and data, measured the same way again when it is verified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geomerge.data import Inputs, Split, Task
from geomerge.data.digest import split_digests, tensor_digest
from geomerge.evaluation.accuracy import accuracy
from geomerge.merging.probe import Probe
from geomerge.metrics import measure_metric, output_map
from geomerge.networks.network import Network
from geomerge.paths.path import WeightPath
from geomerge.steps import trust_region_step
from geomerge.walks.objectives import divergence
from geomerge.walks.walk import FunctionWalkOptions, WeightWalkOptions, walk_toward_function

__all__ = [
    "STANDS",
    "STAYS",
    "bracket",
    "count",
    "counted",
    "data_digests",
    "function_change",
    "leg_changes",
    "step_identities",
]

_LEVEL = 0.95


def counted(correct: int, of: int) -> dict[str, Any]:
    """Return a count as a share, with its 95 % interval by Wilson's score (Wilson 1927).

    Args:
        correct: How many of the examples are labelled correctly.
        of: How many there are, one at least.
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, of).proportion_ci(_LEVEL, method="wilson")
    return {
        "correct": correct,
        "of": of,
        "accuracy": correct / of,
        "interval": [float(interval.low), float(interval.high)],
    }


def count(
    network: Network,
    w: Tensor,  # (n,)
    split: Split,
) -> dict[str, Any]:
    """Return how many examples of a split the network labels correctly, as :func:`counted`."""
    of = len(split.labels)
    return counted(round(accuracy(network, w, split) * of), of)


def data_digests(
    task: Task | None, manifold: Inputs | None, manifold_name: str | None
) -> dict[str, Any]:
    """Return names, normalisations and digests of all data that a network brought to a merge.

    Args:
        task: Its task; the training split is not used with labels, and is not here.
        manifold: Inputs that the walk used.
        manifold_name: The task that these are of.
    """
    found: dict[str, Any] = {"task": None, "manifold": None}
    if task is not None:
        found["task"] = {
            "name": task.name,
            "normalisation": task.normalisation.to_json(),
            "select": split_digests(task.select),
            "test": split_digests(task.test),
        }
    if manifold is not None:
        found["manifold"] = {
            "name": manifold_name,
            "normalisation": manifold.normalisation.to_json(),
            "examples": len(manifold),
            "inputs": tensor_digest(manifold.raw),
        }
    return found


def bracket(path: WeightPath, splits: Mapping[str, tuple[Network, Split]]) -> list[dict[str, Any]]:
    """Return the stored points next to the crossover, measured.

    Args:
        path: The path; where its crossover is an end there is one such point.
        splits: By name, a network as its task sees it and the task's selection split.
    """
    at = path.ts.index(path.crossover)
    found = []
    for t in [*path.ts[max(at - 1, 0) : at], *path.ts[at + 1 : at + 2]]:
        w = path.at(t)
        select = {name: count(network, w, split) for name, (network, split) in splits.items()}
        found.append({"t": t, "select": select})
    return found


def function_change(
    network: Network,
    before: Tensor,  # (n,)
    after: Tensor,  # (n,)
    task: Task | None,
    manifold: Inputs | None,
    output: str,
) -> dict[str, float | None]:
    """Return how far a network's function is from another's on its own inputs.

    Args:
        network: The network as its task sees it.
        before: Its weights.
        after: The other's.
        task: Its task, whose selection inputs are taken; None takes the manifold for the change.
        manifold: Inputs without labels; None where there are none either.
        output: What phi is.

    Returns:
        ``"measured"``, the mean |phi(after) - phi(before)|^2 of a few inputs, and ``"kl"``, the
        mean KL(before || after) of all; None where it cannot be measured.
    """
    found: dict[str, float | None] = {"measured": None, "kl": None}
    inputs = manifold if task is None else task.select.inputs
    if inputs is not None:
        found["measured"] = Probe(network, inputs, output)(before, after)
    if task is not None:
        found["kl"] = _mean_kl(network, before, after, task.select.inputs)
    return found


def _mean_kl(
    network: Network,
    before: Tensor,  # (n,)
    after: Tensor,  # (n,)
    inputs: Inputs,
) -> float:
    total = 0.0
    for x in inputs.batches(2000):
        target = network.logits(before, x).double().log_softmax(dim=1)
        total += len(x) * float(divergence(target)(network.logits(after, x).double()))
    return total / len(inputs)


def leg_changes(path: WeightPath, step: int | None) -> dict[str, Any]:
    """Return the functional change of each leg's steps, predicted and measured, summed.

    Args:
        path: The path.
        step: The crossover's step, where a leg goes on beyond it; None where all legs end there.
    """
    found = {}
    for leg in path.lengths:
        records = [r for r in path.steps if r.leg == leg and (step is None or r.step <= step)]
        measured = [r.measured for r in records if r.measured is not None]
        found[leg] = {
            "steps": len(records),
            "predicted": sum(r.predicted for r in records),
            "measured": sum(measured) if len(measured) == len(records) else None,
        }
    return found


STAYS = "a walk from a network to itself has length zero"
STANDS = "a step with beta = 0 does not move"

_INPUTS = 32
_DAMPING = 1e-3


def step_identities(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    metric: str,
    output: str,
    seed: int,
) -> dict[str, bool]:
    """Take two steps that must not move, and return which of them did not.

    The first is a walk's, toward the network's own outputs phi_0: down mean |phi - phi_0|^2 / 2.
    The second is arXiv 2012.09605, eq. (7), with beta = 0.

    Args:
        network: The network.
        w: Where.
        inputs: The first few are used, labels never.
        metric: Name of the metric, measured on them.
        output: What phi is, such as ``"hellinger"``.
        seed: Of the metric.
    """
    few = Inputs(inputs.raw[:_INPUTS], inputs.normalisation, inputs.device)
    x = few.batch(slice(None))
    measured = measure_metric(metric, network, w, few, output, seed)
    own: list[Tensor] = []

    def half_change(logits: Tensor) -> Tensor:
        phi = output_map(logits, output)
        # phi_0 is the first pass: some layers compute otherwise where no gradient is wanted.
        own.append(phi.detach())
        return (phi - own[0]).square().sum(dim=1).mean() / 2

    def direction(at: Tensor) -> tuple[float, Tensor]:
        loss, gradient = network.gradient(at, x, half_change)
        return loss, -gradient

    direction(w)
    one = FunctionWalkOptions(_DAMPING, steps=1)
    (point,) = walk_toward_function(w, lambda _: measured, [direction], one)
    step = trust_region_step(measured, w, WeightWalkOptions.radius, beta=0.0)
    return {
        STAYS: point.predicted == point.norm == 0 and torch.equal(point.weights, w),
        STANDS: step.predicted == 0 and not bool(step.tangent.any()),
    }
