"""A finished merge -> the plain data of its report; nothing is computed here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.merging import CurvePoint, Merge, MergeOptions, Row
from geomerge.merging.sides import Side

__all__ = ["merge_report"]


def merge_report(
    merged: Merge,
    options: MergeOptions,
    recipe: dict[str, Any],
    rows: list[Row],
    curve: list[CurvePoint],
) -> dict[str, Any]:
    """Return what ``report.json`` holds.

    Args:
        merged: The merge.
        options: Its options.
        recipe: What identifies it.
        rows: The table.
        curve: The accuracy curves.
    """
    sides, chosen = merged.sides, merged.chosen
    score = chosen.score
    return {
        "geomerge": geomerge.__version__,
        "torch": torch.__version__,
        "recipe": recipe,
        "preset": merged.plan.preset,
        "networks": {s.name: _network(s) for s in (sides.a, sides.b)},
        "legs": _legs(merged, options),
        "data": {"walk": _walk_data(merged), "pick": _pick_data(merged)},
        "crossover": {
            "t": merged.t,
            "pick": merged.rule.name,
            "damping": chosen.damping,
            "step": chosen.step,
            "select": {"a": score.a, "b": score.b},
            "drift": {"a": score.drift_a, "b": score.drift_b},
        },
        "candidates": [
            {
                "damping": c.damping,
                "chosen": c is chosen,
                "value": c.value,
                "length": c.length,
                "step": c.step,
                "select": {"a": c.score.a, "b": c.score.b},
            }
            for c in merged.candidates
        ],
        "results": [
            {"name": row.name, "select": list(row.select), "test": list(row.test)} for row in rows
        ],
        "curve": [asdict(point) for point in curve],
        "path": {"points": len(merged.path.ts), "lengths": merged.path.lengths},
        "diagonal_only": list(merged.diagonal),
        "notes": sides.notes,
    }


def _network(side: Side) -> dict[str, Any]:
    meta = side.checkpoint.meta
    return {
        "file": Path(side.checkpoint.source).name,
        "sha256": side.checkpoint.digest,
        "architecture": meta.get("architecture"),
        "task": side.task.name if side.task else meta.get("task"),
        "sketch": side.sketch.meta if side.sketch else None,
    }


def _legs(merged: Merge, options: MergeOptions) -> list[dict[str, Any]]:
    plan = merged.plan
    lengths = merged.path.lengths
    if options.metric == "euclidean":
        first = second = "euclidean"
    else:
        second = f"kronecker ({options.output}), measured on {plan.goal.name}'s inputs as it goes"
        first = second.replace(f"{plan.goal.name}'s", f"{plan.start.name}'s")
    if plan.preset == "sketch":
        if plan.start.sketch and options.metric != "euclidean":
            meta = plan.start.sketch.meta
            first = f"kronecker ({options.output}), sketch of {meta['inputs']} inputs, frozen"
        legs = [
            _leg(plan.start.name, "the crossover", plan.start.name, first, lengths),
            _leg(plan.goal.name, "the crossover", plan.goal.name, second, lengths),
        ]
        return legs if plan.start.name == "a" else legs[::-1]
    return [_leg(plan.start.name, plan.goal.name, plan.start.name, first, lengths)]


def _leg(
    start: str, end: str, keeps: str, metric: str, lengths: dict[str, float]
) -> dict[str, Any]:
    return {
        "walked_from": start,
        "to": end,
        "keeps_function_of": None if metric.startswith("euclidean") else keeps,
        "metric": metric,
        "length": lengths[start],
    }


def _walk_data(merged: Merge) -> list[dict[str, Any]]:
    return [
        {
            "for": s.name,
            "task": s.manifold_name,
            "split": "train",
            "inputs": len(s.manifold),
            "labels": False,
        }
        for s in (merged.sides.a, merged.sides.b)
        if s.manifold is not None and (s is merged.plan.walked_on or s.sketched_now)
    ]


def _pick_data(merged: Merge) -> list[dict[str, Any]]:
    labels = merged.rule.needs != "drifts"
    return [
        {
            "for": s.name,
            "task": s.task.name,
            "split": "select",
            "inputs": len(s.task.select.labels),
            "labels": labels,
        }
        for s in (merged.sides.a, merged.sides.b)
        if s.task is not None
    ]
