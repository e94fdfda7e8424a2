"""Report of a merge: the content of ``report.json``, without any measurement."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.alignment import Alignment
from geomerge.expert import Expert
from geomerge.merging import MergeCurvePoint, MergeResult, ResultRow, Seen
from geomerge.merging.analysis import Answers, SurrogateExamples
from geomerge.merging.beside import JOINT, WORSE
from geomerge.merging.curve import examples_drawn
from geomerge.merging.relax import LegRelaxed
from geomerge.merging.stages import Candidate, PickedStage
from geomerge.paths.energy import PathMeasure

__all__ = ["EXAMPLES", "example_file", "merge_report", "surrogate_file"]

EXAMPLES = "examples"  # folder of a run with images of examples
PROTOCOLS = {
    "shared": "class k of every task is output k; the task is not known (domain-incremental)",
    "offset": "classes of each task after those before; the task is not known (class-incremental)",
    "separate": "a block of outputs for each task; the task is known (task-incremental)",
}


def example_file(name: str, index: int) -> str:
    """Return the file of a test example's image, relative to the folder of the run."""
    return f"{EXAMPLES}/{name}-{index:05d}.png"


def surrogate_file(name: str, index: int) -> str:
    """Return the file of a surrogate input's image, relative to the folder of the run."""
    return f"{EXAMPLES}/{name}-surrogate-{index:02d}.png"


def merge_report(
    merged: MergeResult,
    recipe: dict[str, Any],
    rows: list[ResultRow],
    curve: list[MergeCurvePoint],
    seen: Seen,
) -> dict[str, Any]:
    """Return the content of ``report.json``.

    Args:
        merged: Result of the merge.
        recipe: Options and digests of inputs, which identify the run.
        rows: Rows of the table of results.
        curve: Measurements at the points of the path.
        seen: Analysis: changed answers, losses in a plane, distances by layer, surrogate inputs.
    """
    space, prepared, last = merged.space, merged.preset.prepared, merged.picked
    return {
        "geomerge": geomerge.__version__,
        "torch": torch.__version__,
        "recipe": recipe,
        "preset": merged.preset.name,
        "metric": merged.options.measure.metric,
        "head": {"protocol": space.head, "meaning": PROTOCOLS[space.head]},
        "bn": space.bn,
        "networks": {e.name: _network(e, prepared.heads.offsets[e.name]) for e in space},
        "alignment": {e.name: _alignment(prepared.alignments.get(e.name)) for e in space},
        "legs": _legs(merged),
        "data": {
            "walk": _walk_data(merged),
            "pick": _pick_data(merged),
            "beside": _beside_data(merged, rows),
        },
        "crossover": {
            "t": merged.t,
            "pick": merged.rule.name,
            "damping": last.damping,
            "step": last.step,
            "select": dict(merged.accuracies),
            "drift": dict(last.score.drift),
            "better": next((n for n in merged.notes if n.startswith(WORSE)), None),
        },
        "stages": [_stage(picked) for picked in merged.stages],
        "relaxed": [_relaxed(r) for r in merged.relaxed],
        "results": [
            {
                "name": row.name,
                "select": dict(row.select),
                "test": dict(row.test),
                "hardly_trained": row.hardly_trained,
            }
            for row in rows
        ],
        "curve": [asdict(point) for point in curve],
        "curve_examples": examples_drawn(space.network),
        "path": {"points": len(merged.path.ts), "lengths": merged.path.lengths},
        "layers": [asdict(layer) for layer in seen.layers],
        "answers": {name: _answers(name, found) for name, found in seen.answers.items()},
        "plane": None if seen.plane is None else asdict(seen.plane),
        "surrogates": {name: _surrogates(name, found) for name, found in seen.surrogates.items()},
        "diagonal_only": list(merged.diagonal_only),
        "notes": merged.notes,
    }


def _stage(picked: PickedStage) -> dict[str, Any]:
    chosen = picked.chosen
    return {
        "learned": [s.name for s in picked.stage.toward],
        "candidates": [
            {
                "damping": c.damping,
                "chosen": c is chosen,
                "value": c.value,
                "length": c.length,
                "step": c.step,
                "select": dict(c.score.accuracy),
                "within_budgets": c.score.feasible,
            }
            for c in picked.candidates
        ],
        "damping": _learned(chosen),
        "budgets": _budgets(chosen),
    }


def _learned(chosen: Candidate) -> dict[str, Any]:
    """Return the damping along the walk, constant if it is not learned."""
    values = [s.damping for s in chosen.steps if s.damping is not None]
    if not values:
        return {"first": None, "last": None, "smallest": None, "largest": None}
    return {
        "first": values[0],
        "last": values[-1],
        "smallest": min(values),
        "largest": max(values),
    }


def _budgets(chosen: Candidate) -> dict[str, Any] | None:
    """Return limits, steps that needed the quadratic program, and shadow prices."""
    if chosen.budgets is None:
        return None
    prices: dict[str, list[float]] = {name: [] for name in chosen.budgets.limits}
    for step in chosen.steps:
        for name, price in step.multipliers.items():
            prices[name].append(price)
    return {
        "limits": chosen.budgets.limits,
        "steps": len(chosen.steps),
        "programs_solved": chosen.budgets.solved,
        "largest_residual": chosen.budgets.residual,
        "steps_shortened": chosen.budgets.shortened,
        "shadow_prices": {
            name: {
                "steps_bound": len(found),
                "mean": sum(found) / len(found) if found else 0.0,
                "largest": max(found, default=0.0),
            }
            for name, found in prices.items()
        },
    }


def _relaxed(found: LegRelaxed) -> dict[str, Any]:
    def numbers(measure: PathMeasure, worst: float | None) -> dict[str, Any]:
        return {
            "energy": measure.energy,
            "length": measure.length,
            "bound": measure.bound,
            "gap": measure.gap,
            "worst_accuracy": worst,
        }

    return {
        "leg": found.leg,
        "share": found.share,
        "before": numbers(found.before, found.worst_before),
        "after": numbers(found.after, found.worst_after),
    }


def _answers(name: str, found: Answers) -> dict[str, Any]:
    """Return counts and examples; their images are files of the run."""
    return {
        **{key: getattr(found, key) for key in ("of", "kept", "lost", "gained", "wrong")},
        "shown": [
            {
                "index": one.index,
                "label": one.label,
                "before": one.before,
                "after": one.after,
                "image": None if one.image is None else example_file(name, one.index),
            }
            for one in found.shown
        ],
    }


def _surrogates(name: str, found: SurrogateExamples) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "inputs": found.inputs,
        "first": found.first,
        "shown": [surrogate_file(name, index) for index in range(len(found.images))],
    }


def _network(expert: Expert, class_offset: int) -> dict[str, Any]:
    meta, columns = expert.meta, expert.network.columns
    return {
        "file": Path(expert.source).name,
        "sha256": expert.digest,
        "architecture": expert.architecture,
        "task": expert.task.name if expert.task else meta.get("task"),
        "measure": expert.task.measure if expert.task else "accuracy",
        "outputs": [columns.start, columns.stop] if columns.stop else None,
        "class_offset": class_offset,
        "class_order": meta.get("class_order"),
        "sketch": expert.sketch.meta if expert.sketch else None,
    }


def _alignment(found: Alignment | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "method": found.method,
        "groups": len(found.groups),
        "units": sum(found.groups.values()),
        "moved": sum(found.moved.values()),
        "not_aligned": dict(found.fixed),
        "distance_before": found.before,
        "distance_after": found.after,
    }


def _legs(merged: MergeResult) -> list[dict[str, Any]]:
    return [
        {
            "walked_from": leg.start,
            "to": leg.end,
            "keeps_function_of": list(leg.keeps),
            "metric": leg.metric,
            "length": merged.path.lengths[leg.start],
        }
        for leg in merged.preset.describe()
    ]


def _walk_data(merged: MergeResult) -> list[dict[str, Any]]:
    used = {expert.name for expert in merged.preset.walked_on} | merged.preset.prepared.sketched
    return [
        _used(e, e.inputs.name, "train", len(e.inputs), labels=False)
        for e in merged.space
        if e.inputs is not None and e.name in used
    ]


def _pick_data(merged: MergeResult) -> list[dict[str, Any]]:
    return [
        _used(e, e.task.name, "select", len(e.task.select.labels), merged.rule.uses_labels)
        for e in merged.space
        if e.task is not None
    ]


def _beside_data(merged: MergeResult, rows: list[ResultRow]) -> list[dict[str, Any]]:
    """Return the data of the joint training that the merge is compared with."""
    if all(row.name != JOINT for row in rows):
        return []
    return [
        _used(e, e.task.name, "train", len(e.task.train.labels), labels=True)
        for e in merged.space
        if e.task is not None
    ]


def _used(expert: Expert, task: str, split: str, inputs: int, labels: bool) -> dict[str, Any]:
    return {"for": expert.name, "task": task, "split": split, "inputs": inputs, "labels": labels}
