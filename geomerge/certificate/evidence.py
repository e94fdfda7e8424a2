"""Evidence of a merge: counts, intervals, functional changes and digests of data.

The same functions are used to make a certificate and to verify it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from geomerge.data import Split
from geomerge.data.digest import data_digests
from geomerge.evaluation.drift import function_change, predicted_change
from geomerge.evaluation.measures import perplexity_of, score
from geomerge.expert import Expert
from geomerge.merging import MergeResult
from geomerge.networks.network import Network
from geomerge.paths.path import WeightPath

__all__ = [
    "bracket",
    "count",
    "counted",
    "leg_changes",
    "merge_evidence",
]

_LEVEL = 0.95


def merge_evidence(merged: MergeResult, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurements of a merge in its certificate.

    Args:
        merged: Result of the merge.
        report: Content of ``report.json``, whose accuracies are converted to counts.
    """
    space, path = merged.space, merged.path
    splits = {e.name: (e.network, e.task.select) for e in space if e.task is not None}
    return {
        "data": {e.name: data_digests(e.task, e.inputs) for e in space},
        "crossover": merged.t,
        "bracket": bracket(path, splits),
        "accuracies": _accuracies(merged, report),
        "drift": {
            "legs": leg_changes(path, report["crossover"]["step"]),
            "networks": {e.name: _drift(merged, e) for e in space},
        },
        "programs": _programs(merged),
    }


def counted(correct: int, of: int) -> dict[str, Any]:
    """Return a count as a share with its 95 % Wilson score interval (Wilson 1927).

    Args:
        correct: Number of examples that are labelled correctly.
        of: Number of all examples, positive.
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
    """Return the number of correctly labelled examples of a split, as :func:`counted`.

    For a language model, return the perplexity and the number of tokens.
    """
    return _counted(score(network, w, split), split)


def _counted(score: float, split: Split) -> dict[str, Any]:
    if split.measure == "loss":
        return {"perplexity": perplexity_of(score), "of": split.predicted}
    of = len(split.labels)
    return counted(round(score * of), of)


def bracket(path: WeightPath, splits: Mapping[str, tuple[Network, Split]]) -> list[dict[str, Any]]:
    """Measure the stored points next to the crossover.

    Args:
        path: Path; if its crossover is an end there is one such point.
        splits: Network with the outputs of its task, and selection split, by name of the network.
    """
    at = path.ts.index(path.crossover)
    found = []
    for t in [*path.ts[max(at - 1, 0) : at], *path.ts[at + 1 : at + 2]]:
        w = path.at(t)
        select = {name: count(network, w, split) for name, (network, split) in splits.items()}
        found.append({"t": t, "select": select})
    return found


def leg_changes(path: WeightPath, step: int) -> dict[str, Any]:
    """Return the sum of functional changes of each leg's steps up to the crossover.

    Args:
        path: Path.
        step: Step of the crossover. A single leg continues beyond it; two legs both end there.

    Returns:
        Number of steps, predicted change and measured change of each leg.
    """
    single = len(path.lengths) == 1
    found = {}
    for leg in path.lengths:
        records = [r for r in path.steps if r.leg == leg and (not single or r.step <= step)]
        measured = [r.measured for r in records if r.measured is not None]
        found[leg] = {
            "steps": len(records),
            "predicted": sum(r.predicted for r in records),
            "measured": sum(measured) if len(measured) == len(records) else None,
        }
    return found


def _accuracies(merged: MergeResult, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts behind the scores of the report's table."""
    splits = {
        e.name: {"select": e.task.select, "test": e.task.test}
        for e in merged.space
        if e.task is not None
    }
    names = {"crossover", *(e.name for e in merged.space)}
    return {
        row["name"]: {
            split: {name: _counted(row[split][name], of[split]) for name, of in splits.items()}
            for split in ("select", "test")
        }
        for row in report["results"]
        if row["name"] in names
    }


def _drift(merged: MergeResult, expert: Expert) -> dict[str, float | None]:
    """Return the functional change from a network to the crossover."""
    measured = function_change(expert, merged.w, merged.options.measure.output)
    return {"predicted": predicted_change(expert, merged.w), **measured}


def _programs(merged: MergeResult) -> dict[str, Any]:
    """Return the number of solved quadratic programs, and their largest KKT residual."""
    budgets = [c.budgets for s in merged.stages for c in s.candidates if c.budgets is not None]
    solved = sum(b.solved for b in budgets)
    return {"solved": solved, "largest_residual": max((b.residual for b in budgets), default=0.0)}
