"""A finished sparsification or reconfiguration -> the plain data of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.pruning.masks import prunable
from geomerge.pruning.problem import Subject
from geomerge.pruning.reconfigure import Configuration
from geomerge.pruning.sparsify import Sparsified
from geomerge.pruning.walks import PruneWalk

__all__ = ["reconfigure_report", "sparsify_report"]


def sparsify_report(found: Sparsified, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what ``report.json`` of a sparsification holds.

    Args:
        found: The sparsification.
        recipe: What identifies it.
    """
    subject = found.subject
    return {
        **_head(subject, recipe),
        "data": _data(subject, labels=subject.options.labels),
        "results": [asdict(row) for row in found.rows],
        "paths": [_walk(walk, walk is found.chosen) for walk in found.walks],
        "curve": [asdict(point) for point in found.curve],
        "layers": _layers(found),
        "removed": {layer: list(units) for layer, units in found.removed.items()},
        "cost": _cost(subject),
    }


def reconfigure_report(
    subject: Subject, reached: Sequence[Configuration], recipe: dict[str, Any]
) -> dict[str, Any]:
    """Return what ``report.json`` of a reconfiguration holds.

    Args:
        subject: The network that the plan began with.
        reached: The configurations.
        recipe: What identifies the run.
    """
    return {
        **_head(subject, recipe),
        "data": _data(subject, labels=False),
        "dense": asdict(reached[0].dense),
        "configurations": [
            {
                "name": one.name,
                "removed": {layer: list(units) for layer, units in one.removed.items()},
                "result": asdict(one.row),
                "cut_out": asdict(one.naive),
                "path": _walk(one.walked, True),
                "curve": [asdict(point) for point in one.curve],
                "epochs": one.epochs,
            }
            for one in reached
        ],
        "cost": _cost(subject),
    }


def _head(subject: Subject, recipe: dict[str, Any]) -> dict[str, Any]:
    checkpoint, options = subject.checkpoint, subject.options
    return {
        "geomerge": geomerge.__version__,
        "torch": torch.__version__,
        "recipe": recipe,
        "network": {
            "file": Path(checkpoint.source).name,
            "sha256": checkpoint.digest,
            "architecture": options.arch or checkpoint.meta.get("architecture"),
            "task": subject.task.name,
        },
        "metric": options.metric,
        "output": options.output,
        "bn": subject.bn,
        "dense_held_out": subject.held_out.accuracy,
        "notes": _notes(subject),
    }


def _notes(subject: Subject) -> list[str]:
    others = [
        name for name in subject.checkpoint.meta.get("tasks", {}) if name != subject.task.name
    ]
    if not others:
        return []
    return [
        f"the function was kept on {subject.task.name} alone; the network also knew "
        f"{' and '.join(others)}"
    ]


def _data(subject: Subject, labels: bool) -> dict[str, Any]:
    task = subject.task
    return {
        "walk": {"split": "train", "inputs": len(subject.manifold), "labels": False},
        "last_leg": {"split": "train", "inputs": len(task.train.labels), "labels": True}
        if labels
        else None,
        "choice_of_path": {
            "split": "select",
            "inputs": len(task.select.labels),
            "labels": False,
        },
    }


def _walk(walk: PruneWalk, chosen: bool) -> dict[str, Any]:
    return {
        "name": walk.name,
        "chosen": chosen,
        "damping": walk.settings.damping,
        "steps": walk.settings.steps,
        "length": walk.leg.length,
        "agreement": walk.agreement,
        "shadow_prices": _prices(walk),
    }


def _prices(walk: PruneWalk) -> dict[str, float]:
    largest: dict[str, float] = {}
    for step in walk.leg.steps:
        for name, price in step.multipliers.items():
            largest[name] = max(largest.get(name, 0.0), price)
    return largest


def _layers(found: Sparsified) -> list[dict[str, Any]]:
    subject, w = found.subject, found.chosen.weights
    rows = []
    for name, place in prunable(subject.network).items():
        part = w[place]
        rows.append({"name": name, "weights": len(part), "zero": int((part == 0).sum())})
    return rows


def _cost(subject: Subject) -> dict[str, Any]:
    examples = len(subject.task.train.labels)
    return {
        "forward_passes": subject.cost.passes,
        "epochs": subject.cost.epochs(examples),
        "meaning": "epochs of training, each three forward passes over the training split",
    }
