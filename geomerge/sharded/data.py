"""Data of the networks of a sharded merge: inputs of the walk, and tasks where there are labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomerge.data import (
    Inputs,
    Task,
    is_text_file,
    load_encoded_task,
    load_task,
    normalisation_of,
)
from geomerge.data.digest import data_digests
from geomerge.errors import NoLabelsError, OptionError
from geomerge.evaluation.pick import parse_pick
from geomerge.evaluation.plausibility import few_examples
from geomerge.expert import text_encoder
from geomerge.expert_options import DataOptions
from geomerge.loading import (
    assigned_manifolds,
    check_normalisations,
    refuse_unknown_names,
    seen_selection,
    walked_inputs,
)
from geomerge.sharded.sources import Sources

__all__ = ["NetworkData", "data_notes", "load_data", "refuse_pick", "unlabelled"]


@dataclass(frozen=True)
class NetworkData:
    """Data of a network.

    Attributes:
        name: Name of the task.
        inputs: Inputs that the walk uses.
        task: Task with labels; None without any.
    """

    name: str
    inputs: Inputs
    task: Task | None

    @property
    def digests(self) -> dict[str, Any]:
        """Digests of the inputs, and of the splits that are measured."""
        return data_digests(self.task, self.inputs)


def load_data(sources: Sources, options: DataOptions) -> dict[str, NetworkData]:
    """Load the data of all networks, by their names.

    Args:
        sources: Networks.
        options: Options of the data.

    Raises:
        OptionError: If a network has no inputs, or options do not belong to sharded merges.
        TaskError: If data is missing or damaged.
    """
    for option in ("sketch", "arch", "task"):
        if getattr(options, option):
            raise OptionError(f"a sharded merge has no `{option}`; leave it out")
    if options.device != "cpu":
        raise OptionError(
            f"a sharded merge computes on the CPU, got `device` {options.device}; leave it out, or "
            "merge without shards"
        )
    refuse_unknown_names(sources.folders, options)
    given = assigned_manifolds(options, dict.fromkeys(sources.folders))
    if len(given) < len(sources.folders):
        raise OptionError(
            f"expected a `manifold` for each of {len(sources.folders)} networks, got {len(given)}; "
            "name the task of each"
        )
    found = {name: _load(sources, name, given[name], options) for name in sources.folders}
    check_normalisations(options, {one.name for one in found.values()})
    return found


def _load(sources: Sources, name: str, task: str | Task, options: DataOptions) -> NetworkData:
    if not isinstance(task, str):
        return NetworkData(task.name, walked_inputs(task.train.inputs, options.max_inputs), task)
    examples = options.reading.examples
    try:
        if is_text_file(task):
            encoder = text_encoder(sources.folders[name], sources.configs[name])
            found = load_encoded_task(Path(task), encoder, examples)
        else:
            found = load_task(
                task, data_root=options.data_root, download=options.download, files=examples,
                normalisation=normalisation_of(options.normalisation, task),
            )  # fmt: skip
    except NoLabelsError as error:
        return NetworkData(task, walked_inputs(error.inputs, options.max_inputs), None)
    return NetworkData(task, walked_inputs(found.train.inputs, options.max_inputs), found)


def unlabelled(data: Mapping[str, NetworkData]) -> list[str]:
    """Return the names of the networks without labels.

    Args:
        data: Data of each network, by its name.
    """
    return [name for name, one in data.items() if one.task is None]


def refuse_pick(pick: str | None, data: Mapping[str, NetworkData]) -> None:
    """Refuse a pick rule that the data does not allow.

    Args:
        pick: Text of the rule; None takes any that can be used.
        data: Data of each network, by its name.

    Raises:
        OptionError: If the rule needs labels that are missing, or anything but accuracies.
    """
    if pick is None:
        return
    if not parse_pick(pick, dict.fromkeys(data)).uses_labels:
        raise OptionError(
            f"`pick` {pick} needs drifts, which a sharded merge does not measure; use max-min, "
            "balanced or a floor such as 'a>=0.80'"
        )
    if blind := " and ".join(unlabelled(data)):
        raise OptionError(
            f"`pick` {pick} needs labels of all tasks in a sharded merge, and there are none for "
            f"{blind}; leave it out, and the last point is taken"
        )


def data_notes(sources: Sources, data: Mapping[str, NetworkData]) -> list[str]:
    """Return notes on what accuracies say.

    Args:
        sources: Networks.
        data: Data of each, by its name.
    """
    tasks = {name: one.task for name, one in data.items() if one.task is not None}
    seen = [seen_selection(sources.folders[k], k, task.name) for k, task in tasks.items()]
    return seen + few_examples(tasks.values())
