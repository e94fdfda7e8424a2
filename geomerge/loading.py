"""Experts from files and texts: networks, tasks, inputs and sketches by their names.

Texts are read by the command line and by these loaders only; everything else takes objects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any, TypeVar

from torch import nn

from geomerge.data import (
    Inputs,
    Task,
    check_normalised,
    is_text_file,
    load_task,
    normalisation_of,
    split_normalisations,
)
from geomerge.errors import NoLabelsError, OptionError, Problems, TaskError, type_of
from geomerge.evaluation.plausibility import few_examples, normalisation_doubt
from geomerge.expert import Expert
from geomerge.expert_like import ExpertLike, Opened, as_expert, as_experts, opened, rebuilt
from geomerge.expert_options import DataOptions, ExpertOptions
from geomerge.io.checkpoint import Checkpoint
from geomerge.metrics import load_sketch
from geomerge.metrics.sketch import FEATURES
from geomerge.networks.network import check_device
from geomerge.options import build_options, option_fields

__all__ = [
    "NAMES",
    "DataOptions",
    "ExpertOptions",
    "assigned_manifolds",
    "check_normalisations",
    "data_among",
    "find_tasks",
    "given_expert",
    "given_experts",
    "load_base",
    "load_expert",
    "load_experts",
    "refuse_unknown_names",
    "seen_selection",
    "walked_inputs",
]

_SAMPLE_SEED = 0  # seed of the sample of inputs, where a walk may use only some
NAMES = ascii_lowercase  # names of networks, in order

Data = TypeVar("Data", DataOptions, ExpertOptions)


def given_experts(things: Sequence[ExpertLike], changes: dict[str, Any]) -> list[Expert]:
    """Return the networks that a recipe is called with, and the data that its keywords name.

    Args:
        things: Networks.
        changes: Keywords of the call, out of which those of data are taken.

    Raises:
        GeomergeError: If a network or data cannot be used.
    """
    if isinstance(things, (str, Path, Expert, nn.Module, Checkpoint, Mapping)):
        raise OptionError(
            f"expected a list of networks, got {type_of(things)}; put them into one, such as [a, b]"
        )
    data = data_among(changes, DataOptions)
    return as_experts(things) if data is None else load_experts(things, data)


def given_expert(thing: ExpertLike, changes: dict[str, Any]) -> Expert:
    """Return the network that a recipe is called with, and the data that its keywords name.

    Args:
        thing: Network.
        changes: Keywords of the call, out of which those of data are taken.

    Raises:
        GeomergeError: If the network or the data cannot be used.
    """
    given = changes.get("inputs")
    number = given is None or isinstance(given, int)  # an option of the recipe
    kept = {"inputs": changes.pop("inputs")} if number and "inputs" in changes else {}
    data = data_among(changes, ExpertOptions)
    changes |= kept
    return as_expert(thing, "network") if data is None else load_expert(thing, data)


def data_among(changes: dict[str, Any], cls: type[Data]) -> Data | None:
    """Take the keywords of data out of those of a call; None if there are none.

    Args:
        changes: Keywords; those of the class are removed, and ``inputs``, another name of
            ``manifold``.
        cls: Class of the options of data.
    """
    if "inputs" in changes:
        changes["manifold"] = changes.pop("inputs")
    names = {one.name for one in option_fields(cls)}
    data = {name: changes.pop(name) for name in [*changes] if name in names}
    return build_options(cls, data) if data else None


def load_base(
    base: ExpertLike | None, networks: Sequence[Opened], data: DataOptions
) -> Expert | None:
    """Return the common ancestor of networks, without data; None if none is given.

    Args:
        base: The ancestor.
        networks: Fine-tunes of it, whose architecture is taken for a file that records none.
        data: Architecture, and what is read of files.

    Raises:
        GeomergeError: If it cannot be read or rebuilt.
    """
    if base is None:
        return None
    return rebuilt(opened(base, data.reading.files), data.arch, among=networks)


def load_expert(thing: ExpertLike, options: ExpertOptions | None = None) -> Expert:
    """Return one network with its task, whose training inputs keep its function.

    Args:
        thing: The network: an expert, a module, a checkpoint, a state dict or a file.
        options: Its task and architecture.

    Raises:
        GeomergeError: If the network cannot be read, or its task is not known, or the task's data
            is not available.
    """
    options = options or ExpertOptions()
    check_device(options.device)
    expert = rebuilt(opened(thing, options.reading.files), options.arch, device=options.device)
    task = options.manifold if options.manifold is not None else expert.task or expert.task_name
    if task is None:
        raise OptionError(
            f"{expert.source} does not record its task; name the task with `manifold`"
        )
    if isinstance(task, str):
        own = normalisation_of(options.normalisation, task)
        task = expert.load_task(
            task, own, options.data_root, options.download, options.reading.examples
        )
        expert = expert.with_task(task)
    elif task is not expert.task:
        expert = expert.with_task(task)
    assert expert.task is not None
    doubt = normalisation_doubt(expert)
    notes = [*([] if doubt is None else [doubt]), *few_examples([expert.task])]
    notes = [*expert.notes, *(note for note in notes if note not in expert.notes)]
    return replace(expert, inputs=expert.task.train.inputs, notes=tuple(notes))


def load_experts(
    things: Sequence[ExpertLike],
    data: DataOptions | None = None,
    problems: Problems | None = None,
    output: str | None = None,
) -> list[Expert]:
    """Return several networks, called a, b, c, ... in order, with the data that belongs to each.

    Args:
        things: The networks: experts, modules, checkpoints, state dicts or files.
        data: Tasks, inputs, sketches and architecture.
        problems: Collector of everything that is wrong; without one the first problem is raised.
        output: Output that sketches named in ``data`` must measure; None takes any.

    Returns:
        The experts that could be made, in order. Tasks of theirs that are recorded and whose data
        is not available are missing, with a note.

    Raises:
        GeomergeError: If something is wrong and ``problems`` is not given.
    """
    data = data or DataOptions()
    problems = Problems(strict=True) if problems is None else problems
    if len(things) > len(NAMES):
        raise OptionError(f"expected at most {len(NAMES)} networks, got {len(things)}; give fewer")
    check_device(data.device)
    given: dict[str, Opened] = {}
    experts: dict[str, Expert] = {}
    for name, thing in zip(NAMES, things, strict=False):
        with problems.noted():
            given[name] = opened(thing, data.reading.files)
    for name, one in given.items():
        with problems.noted():
            like = next(iter(experts.values()), None)
            experts[name] = rebuilt(
                one, data.arch, name=name, device=data.device, among=[*given.values()], like=like
            )
    sketches = data.by_network("sketch")
    for name, expert in experts.items():
        with problems.noted():
            if name in sketches:
                experts[name] = _with_sketch(expert, sketches[name], output)
    if len(experts) < len(things):  # manifolds without the name of a network
        find_tasks(data, problems)
        return list(experts.values())
    manifolds: dict[str, str | Task] = {}
    with problems.noted():
        refuse_unknown_names(experts, data)
        recorded = {name: _recorded_task(expert, data) for name, expert in experts.items()}
        manifolds = assigned_manifolds(data, recorded)
        for name, task in manifolds.items():
            if recorded[name] is not None and recorded[name] != _name(task):
                note = (
                    f"{name} was trained for {recorded[name]}, and its function is kept on "
                    f"{_name(task)}"
                )
                experts[name] = _noted(experts[name], note)
    for name, expert in experts.items():
        with problems.noted():
            experts[name] = _with_data(expert, manifolds.get(name), data)
    with problems.noted():
        names = {e.task.name for e in experts.values() if e.task}
        names |= {e.inputs.name for e in experts.values() if e.inputs}
        check_normalisations(data, names)
    return list(experts.values())


def find_tasks(data: DataOptions, problems: Problems) -> None:
    """Load the tasks that are named, where it is not known which networks they belong to.

    Args:
        data: Names of tasks.
        problems: Collector of a sentence for each task that cannot be had.

    Raises:
        TaskError: If there is one and the problems are strict.
    """
    for entry in data.manifold:
        with problems.noted():
            if isinstance(entry, str) and not is_text_file(entry):  # needs its tokenizer
                with suppress(NoLabelsError):  # inputs are enough for a walk
                    load_task(
                        entry.partition("=")[2] or entry,
                        data_root=data.data_root,
                        files=data.reading.examples,
                    )


def _with_sketch(expert: Expert, file: str, output: str | None) -> Expert:
    sketch = load_sketch(file, expert.network, expert.weights)
    if output is not None and not sketch.measures(output):
        raise OptionError(
            f"{file} measures {sketch.meta.get('output')}, expected {output}; make a sketch that "
            f"measures {output}"
        )
    if sketch.meta.get("output") != FEATURES:
        return replace(expert, sketch=sketch)
    note = f"{Path(file).name} measures features without a head, and says not of which weights"
    if unmeasured := sketch.meta["unmeasured"]:
        note += f"; it says nothing of {', '.join(unmeasured[:3])}"
        note += f" and {len(unmeasured) - 3} more" if len(unmeasured) > 3 else ""
    return replace(expert, sketch=sketch, notes=(*expert.notes, note))


def _recorded_task(expert: Expert, data: DataOptions) -> str | None:
    """Return a network's task as given by the user, its file or its sketch."""
    return data.by_network("task").get(expert.name) or expert.task_name


def refuse_unknown_names(networks: Collection[str], data: DataOptions) -> None:
    """Refuse data of a network that is not there.

    Args:
        networks: Names of the networks.
        data: Tasks, inputs and sketches.

    Raises:
        OptionError: If there is some.
    """
    given: dict[str, Mapping[str, Any]] = {
        "manifold": data.manifolds()[0],
        "sketch": data.by_network("sketch"),
        "task": data.by_network("task"),
    }
    for argument, entries in given.items():
        for name in entries:
            if name not in networks:
                raise OptionError(
                    f"`{argument}` names network {name!r}, and the networks are "
                    f"{', '.join(networks)}; name one of them"
                )


def assigned_manifolds(
    data: DataOptions, recorded: Mapping[str, str | None]
) -> dict[str, str | Task]:
    """Return the manifold of each network that has one.

    A task whose name is recorded by one network alone is that network's; the others go to the
    first networks that have none.

    Args:
        data: Options that name the manifolds.
        recorded: Task that each network records, None where it records none.

    Raises:
        OptionError: If there are more manifolds than networks.
    """
    given, rest = data.manifolds()
    if len(given) + len(rest) > len(recorded):
        raise OptionError(
            f"expected at most {len(recorded)} manifolds, one for each network, got "
            f"{len(given) + len(rest)}; leave the others out"
        )
    for task in list(rest):
        owners = [k for k, own in recorded.items() if own == _name(task) and k not in given]
        if len(owners) == 1:
            given[owners[0]] = task
            rest.remove(task)
    for task in rest:
        given[next(k for k in recorded if k not in given)] = task
    return given


def walked_inputs(inputs: Inputs, most: int | None) -> Inputs:
    """Return the inputs of a task that a walk may use: all, or a sample of so many."""
    return inputs if most is None else inputs.sample(most, _SAMPLE_SEED)


def check_normalisations(data: DataOptions, tasks: Collection[str]) -> None:
    """Refuse a normalisation of a task that is not there.

    Args:
        data: Options that name normalisations.
        tasks: Names of the tasks.

    Raises:
        OptionError: If there is one.
    """
    check_normalised(split_normalisations(data.normalisation), tasks, "used")


def seen_selection(source: str | Path, name: str, task: str) -> str:
    """Return the note on a network that does not record its training.

    Args:
        source: File or folder of the network.
        name: Name of the network.
        task: Name of its task.
    """
    return (
        f"{Path(source).name} does not record what it was trained on: it may have seen the "
        f"selection split of {task}, so picks may favour {name}"
    )


def _name(task: str | Task) -> str:
    return task if isinstance(task, str) else task.name


def _with_data(expert: Expert, manifold: str | Task | None, data: DataOptions) -> Expert:
    """Load a network's task, for choosing and reporting, and its manifold, for walking."""
    name = _recorded_task(expert, data) or (None if manifold is None else _name(manifold))
    if name is None:
        return _noted(expert, f"{expert.name} is not measured: its task is not known")
    own = split_normalisations(data.normalisation)

    def load(task: str) -> Task:
        return expert.load_task(
            task, own.get(task), data.data_root, data.download, data.reading.examples
        )

    manifold_name = None if manifold is None else _name(manifold)
    try:
        if manifold is not None and manifold_name == name:
            expert = expert.with_task(load(manifold) if isinstance(manifold, str) else manifold)
        elif expert.task is None or expert.task.name != name:
            expert = expert.with_task(load(name))
    except (TaskError, OptionError) as error:
        unlabelled = isinstance(error, NoLabelsError) and name == manifold_name
        if not unlabelled and name in (data.by_network("task").get(expert.name), manifold_name):
            raise
        expert = _noted(expert, f"{expert.name} is not measured: {error}")
    if manifold is not None:
        inputs = _inputs_of(expert, manifold, load)
        expert = expert.with_inputs(walked_inputs(inputs, data.max_inputs))
    if expert.task is not None and "selection_seed" not in expert.meta.get("training", {}):
        expert = _noted(expert, seen_selection(expert.source, expert.name, name))
    return expert


def _inputs_of(expert: Expert, manifold: str | Task, load: Callable[[str], Task]) -> Inputs:
    if expert.task is not None and expert.task.name == _name(manifold):
        return expert.task.train.inputs
    try:
        return (load(manifold) if isinstance(manifold, str) else manifold).train.inputs
    except NoLabelsError as error:
        inputs: Inputs = error.inputs
        return inputs


def _noted(expert: Expert, note: str) -> Expert:
    return replace(expert, notes=(*expert.notes, note))
