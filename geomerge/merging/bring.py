"""A side's data and sketch, from its checkpoint and the options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from geomerge.data import (
    Task,
    load_task,
    recorded_normalisation,
    split_normalisations,
)
from geomerge.errors import OptionError, TaskError
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side
from geomerge.metrics.sketch import load_sketch, restore_sketch
from geomerge.networks.network import Network

__all__ = ["load_data", "load_side_sketch", "recorded_task"]


def recorded_task(side: Side, options: MergeOptions) -> str | None:
    """Return the task that a side is said to be for: by the user, its file, or its sketch."""
    sketched = side.sketch.meta.get("task") if side.sketch else None
    return _explicit_task(side, options) or side.checkpoint.meta.get("task") or sketched


def _explicit_task(side: Side, options: MergeOptions) -> str | None:
    return options.by_network("task").get(side.name)


def load_data(side: Side, options: MergeOptions, notes: list[str]) -> None:
    """Load a side's task, for choosing and reporting, and its manifold, for walking."""
    name = recorded_task(side, options) or side.manifold_name
    if name is None:
        notes.append(f"{side.name} is not measured: nothing says its task")
        return
    meta = side.checkpoint.meta
    recorded = dict(side.sketch.meta) if side.sketch else {}
    own = split_normalisations(options.normalisation)

    def load(task: str, classes: bool) -> Task:
        found = load_task(
            task,
            data_root=options.data_root,
            download=options.download,
            normalisation=own.get(task)
            or recorded_normalisation(meta, task)
            or recorded_normalisation(recorded, task),
            device=options.device,
        )
        few = found.train.inputs.batch(slice(0, 4))
        most = found.classes if side.rows.stop is None else side.rows.stop - side.rows.start
        if classes and found.classes > most:
            raise TaskError(
                f"network {side.name} has {most} outputs and {task} has {found.classes} classes; "
                "expected at least as many outputs as classes: name another task"
            )
        side.network.check_inputs(side.w, few, found.classes + side.offset if classes else 0, task)
        return found.shifted(side.offset)

    try:
        side.task = load(name, classes=True)
    except (TaskError, OptionError) as error:
        if name in (_explicit_task(side, options), side.manifold_name):
            raise
        notes.append(f"{side.name} is not measured: {error}")
    if side.manifold_name is not None:
        same = side.task is not None and side.manifold_name == name
        walked = side.task if same else load(side.manifold_name, classes=False)
        assert walked is not None
        side.manifold = walked.train.inputs
    if side.task is not None and "selection_seed" not in meta.get("training", {}):
        notes.append(
            f"{Path(side.checkpoint.source).name} does not say what it was trained on: it may have "
            f"seen the selection split of {name}, so picks may favour {side.name}"
        )


def load_side_sketch(
    side: Side,
    network: Network,
    w: Tensor,  # (n,)
    options: MergeOptions,
    notes: list[str],
) -> None:
    """Load a side's sketch, which is of the network and the weights as they came."""
    file = options.by_network("sketch").get(side.name)
    if file is not None:
        side.sketch = load_sketch(file, network, w)
        if side.sketch.meta.get("output") != options.output:
            raise OptionError(
                f"{file} measures {side.sketch.meta.get('output')}, expected {options.output}; "
                f"make a sketch that measures {options.output}"
            )
    elif side.checkpoint.sketch:
        meta: dict[str, Any] = side.checkpoint.meta.get("sketch", {})
        if meta.get("output") != options.output:
            notes.append(
                f"the sketch in {Path(side.checkpoint.source).name} is not used: it measures "
                f"{meta.get('output')}, not {options.output}"
            )
            return
        side.sketch = restore_sketch(
            side.checkpoint.sketch, meta, network, w, side.checkpoint.source
        )
