"""Check of a merge before any work: all problems at once, else preset and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from geomerge.errors import Problems, first_few
from geomerge.evaluation.measures import loss_of
from geomerge.expert import Expert
from geomerge.expert_like import ExpertLike, as_expert, opened, rebuilt
from geomerge.expert_options import DataOptions
from geomerge.io.checkpoint import Checkpoint, is_safetensors, load_header
from geomerge.loading import NAMES, data_among, find_tasks, load_experts
from geomerge.merging.choice import plan_merge
from geomerge.merging.cost import estimate_memory, estimate_time
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import prepare
from geomerge.merging.presets.sketches import predicted_gain
from geomerge.merging.same_make import compare_networks
from geomerge.networks.architectures import rename_like
from geomerge.networks.hugging_face import load_network, model_folder
from geomerge.networks.network import check_device
from geomerge.options import build_options, option_fields, replace_options

__all__ = ["Check", "check", "check_merge"]

T = TypeVar("T")


@dataclass
class Check:
    """Problems of a merge; where there are none, its preset and its cost.

    Attributes:
        networks: Description of each network, by name: ``file``, ``architecture``, ``weights``,
            ``task``, ``labels``, ``manifold``, ``inputs``, ``sketch``; where nothing is in the way,
            ``accuracy`` or ``loss`` on as many ``examples`` of its task's selection split.
        preset: Preset that the merge would choose; None where something is wrong.
        memory: Bytes, by their use.
        time: Seconds by part, and steps by walk.
        gain: Predicted drift of the average of fine-tunes, and ``less``, by how much their mean in
            the metrics of their sketches is predicted to have less; None without sketches or base.
        problems: Sentences with their remedies.
        notes: Sentences on assumptions and limits.
    """

    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    preset: str | None = None
    memory: dict[str, int] | None = None
    time: dict[str, Any] | None = None
    gain: dict[str, float] | None = None
    problems: Problems = field(default_factory=Problems)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the content as JSON."""
        return {**asdict(self), "problems": list(self.problems)}


def check(
    experts: Sequence[ExpertLike],
    options: MergeOptions | None = None,
    *,
    base: ExpertLike | None = None,
    **changes: Any,
) -> Check:
    """Check everything that a merge needs, and estimate its cost from a few steps.

    Args:
        experts: Experts, modules or files of networks, as the merge takes them.
        options: Options of the merge.
        base: Common ancestor of all; None if there is none.
        changes: Options by name that replace those of ``options``, and data, as the merge takes
            them.

    Returns:
        All problems at once. Without any, the merge's preset and estimates of its cost.

    Raises:
        OptionError: If an option cannot be used.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from geomerge.merging.check import check
        >>> check([nn.Linear(4, 2), nn.Linear(4, 2)]).problems[0]  # no task, no inputs
        'no inputs to walk on; name the task of one network with `inputs`, such as mnist'
    """
    found = Check()
    data = data_among(changes, DataOptions)
    options = replace_options(options or MergeOptions(), **changes)
    things, given = [], []
    if data is not None:
        given = load_experts(experts, data, found.problems)
        experts = ()
    for thing in experts:
        with found.problems.noted():
            things.append(opened(thing))
    for one, name in zip(things, NAMES, strict=False):
        with found.problems.noted():
            like = next(iter(given), None)
            made = rebuilt(one, among=things, like=like)
            made = made if made.name else replace(made, name=name)
            given.append(made if isinstance(one, Expert) else made.with_data())
    ancestor = None
    with found.problems.noted():
        ancestor = None if base is None else as_expert(base, among=given)
    if not found.problems:
        _foresee(given, options, found, ancestor)
    return found


def check_merge(
    files: Sequence[str | Path], options: Mapping[str, Any], base: str | Path | None = None
) -> Check:
    """Check everything that a merge of files needs; see :func:`check`.

    Args:
        files: Files of the networks.
        options: Options of :class:`~geomerge.merging.MergeOptions` and
            :class:`~geomerge.expert_options.DataOptions`, by name.
        base: File or folder of their common ancestor.

    Returns:
        All problems at once, those of options and files as well.

    Example:
        >>> from geomerge.merging.check import check_merge
        >>> check_merge(["no-such-file.pt", "nor-this.pt"], {"manifold": ("digits",)}).problems[0]
        'no file no-such-file.pt; check the name'
    """
    found = Check()
    problems = found.problems
    chosen = _usable(MergeOptions, options, problems)
    data, device = _usable(DataOptions, options, problems), "cpu"
    with problems.noted():
        check_device(data.device)
        device = data.device
    if not 2 <= len(files) <= len(NAMES):
        problems.note(
            f"expected 2 to {len(NAMES)} networks, got {len(files)}; name the files or folders"
        )
    data = replace(data, device=device)
    things = _read(files, data, chosen, problems)
    experts: list[Expert] = []
    if things is None:  # manifolds without the name of a network
        find_tasks(data, problems)
    else:
        with problems.noted():
            experts = load_experts(things, data, problems, chosen.measure.output)
    ancestor = None
    with problems.noted():
        ancestor = None if base is None else Expert.load(base, arch=data.arch, inputs=False)
    if not data.manifold and not all(expert.sketch for expert in experts):
        problems.note(
            "no inputs to walk on; name the task of one network with `inputs`, such as mnist"
        )
    if len(experts) == len(files) and len(files) > 1:
        _foresee(experts, chosen, found, ancestor)
    else:
        found.networks = {expert.name: _describe(expert) for expert in experts}
    return found


def _usable(cls: type[T], values: Mapping[str, Any], problems: Problems) -> T:
    """Return options with defaults in place of values that cannot be used."""
    good: dict[str, Any] = {}
    for one in option_fields(cls):
        if one.name not in values:
            continue
        value, read = values[one.name], one.read or (lambda v: v)
        for single in value if isinstance(value, tuple) else ():
            with problems.noted():
                build_options(cls, {one.name: read((single,))})
        with problems.noted():
            build_options(cls, {one.name: read(value)})
            good[one.name] = read(value)
    with problems.noted():
        return build_options(cls, good)
    return build_options(cls, {})  # each is good, not all of them together


def _read(
    files: Sequence[str | Path], data: DataOptions, options: MergeOptions, problems: Problems
) -> list[ExpertLike] | None:
    """Read the networks; None if their headers show that they cannot be merged.

    The format of ``.pt`` files has no header: they are read whole.
    """
    read: list[Checkpoint | None] = []
    for file in files:
        read.append(None)
        with problems.noted():
            folder = model_folder(file)
            light = folder is None and not data.reading.files.leave_out and is_safetensors(file)
            read[-1] = load_header(file) if light else load_network(file, data.reading.files)
    known = len(problems)
    shapes = [c for c in read if c is not None]
    # One that is given may make up for other names, and a common vocabulary for other shapes.
    if shapes and data.arch is None and options.vocabulary is None:
        first = shapes[0].weights
        alike = [replace(c, weights=rename_like(c.weights, first)) for c in shapes]
        compare_networks(alike, options.head, problems)
    if len(problems) > known and not all(c.digest for c in shapes):
        return None
    return [
        checkpoint if checkpoint is not None and checkpoint.digest else file
        for checkpoint, file in zip(read, files, strict=True)
    ]


def _foresee(
    experts: Sequence[Expert], options: MergeOptions, found: Check, base: Expert | None
) -> None:
    """Prepare the merge, and describe its preset, walks and cost."""
    found.networks = {expert.name: _describe(expert) for expert in experts}
    found.notes = [note for expert in experts for note in expert.notes]
    if found.problems:  # without all data, problems of the plan are not conclusive
        prepare(experts, options, found.problems, base)
        return
    planned = plan_merge(experts, options, found.problems, base)
    if planned is None:
        return
    preset, _ = planned
    for expert in preset.space:
        if expert.task is not None:
            look = preset.prepared.looks[expert.name]
            measure = look.examples.measure
            found.networks[expert.name] |= {
                measure: look.score if measure == "accuracy" else loss_of(look.score),
                "examples": len(look.examples.labels),
            }
    found.preset, found.notes = preset.name, preset.prepared.notes
    found.memory = estimate_memory(preset)
    gain = predicted_gain(preset.prepared) if base is not None else None
    if gain is not None:
        found.gain = {"average": gain[0], "less": gain[1]}
    with found.problems.noted():
        found.time = estimate_time(preset)
        found.notes += _slow(found.time["one_by_one"])


def _slow(seconds: Mapping[str, float]) -> list[str]:
    """Return sentences on weights that are measured input by input, with their time."""
    if not seconds:
        return []
    return [
        f"the metric of {first_few(list(seconds))} is measured input by input, "
        f"{max(seconds.values()):.2g} s for each: no cheaper form is known for their use"
    ]


def _describe(expert: Expert) -> dict[str, Any]:
    sketch, inputs = expert.sketch, expert.inputs
    numbers = sum(t.numel() for t in sketch.tensors().values()) if sketch is not None else 0
    return {
        "file": expert.source,
        "architecture": expert.architecture,
        "weights": expert.network.n,
        "task": expert.task_name,
        "labels": expert.task is not None,
        "manifold": inputs.name if inputs is not None else None,
        "inputs": len(inputs) if inputs is not None else None,
        "sketch": None
        if sketch is None
        else {
            "task": sketch.meta.get("task"),
            "inputs": sketch.meta.get("inputs"),
            "numbers_per_weight": numbers / expert.network.n,
        },
    }
