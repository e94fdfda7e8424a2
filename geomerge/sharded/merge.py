"""Merge of fine-tunes whose weights, metric and steps are spread over processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.data import (
    Inputs,
    Task,
    is_text_file,
    load_encoded_task,
    load_task,
    split_normalisations,
)
from geomerge.errors import NoLabelsError, OptionError, TaskError
from geomerge.evaluation.pick import PickRule, Score, parse_pick
from geomerge.expert import text_encoder
from geomerge.expert_options import DataOptions
from geomerge.io.files import write_bytes
from geomerge.io.folders import resumable_folder
from geomerge.io.precision import in_precision
from geomerge.merging.model_folders import distinct_names
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.mean import KroneckerMean
from geomerge.monitor.progress import Progress
from geomerge.networks.hugging_face import CONFIG, copy_other_files, network_digest
from geomerge.options import recorded, replace_options
from geomerge.processes import Team, agree, together
from geomerge.sharded.checkpoint import Saved, load_shards, save_model, save_shards
from geomerge.sharded.layout import Layout
from geomerge.sharded.measure import measure_sharded
from geomerge.sharded.network import ShardedNetwork
from geomerge.sharded.options import START_DAMPING, ShardedOptions
from geomerge.sharded.sources import Sources
from geomerge.sharded.walk import ShardedWalk, Teacher, answers, share_right

__all__ = ["REPORT", "merge_sharded"]

REPORT = "merge.json"
_WORK = "work"  # folder of the state that a merge is resumed from
_SAMPLE_SEED = 0  # of the inputs, where only some are used


def merge_sharded(
    networks: Sequence[str | Path],
    options: ShardedOptions | None = None,
    data: DataOptions | None = None,
    *,
    out: str | Path,
    base: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Merge fine-tunes of one base that are too large for one device, in several processes.

    A joint walk leads from the mean of the weights toward the functions of all networks, in the
    Kronecker metric of all. Each process of torch's process group holds a share of the weights, of
    the momentum and of the metric's factors (FSDP2, Zhao et al. 2023, arXiv 2304.11277). All
    processes must call this with the same arguments. An interrupted merge is resumed by the same
    call, with any number of processes.

    Args:
        networks: Model folders of Hugging Face for classification, of one architecture.
        options: Options of the merge.
        data: Tasks of the networks as ``manifold``, in order or as ``a=NAME``, and their number of
            inputs. The walk uses no labels; the pick uses those of the selection splits.
        out: Folder of the merged model; with separate heads it has a folder for each network.
        base: Folder of the common ancestor, which tells what layers are heads.
        progress: Function called after each step, in the first process.
        **changes: Options of the merge or of the data by name that replace those.

    Returns:
        Content of ``merge.json``, in every process: accuracies, picked point, notes.

    Raises:
        GeomergeError: If the networks do not belong together, inputs are missing, or the walk
            diverges.
    """
    data_names = {"manifold", "max_inputs"}
    given = {k: changes.pop(k) for k in [*changes] if k in data_names}
    options = replace_options(options or ShardedOptions(), **changes)
    data = replace_options(data or DataOptions(), **given)
    _check_data(data)
    with together() as mates:
        if mates is None:
            raise OptionError(
                "a sharded merge expects several processes, got one; start it with "
                "torchrun, or merge without shards"
            )
        sources = Sources(networks, options.head, None if base is None else Path(base))
        known = _known_data(sources, data)
        recipe: dict[str, Any] = {
            "merge": recorded(options),
            "own": sources.own,
            "data": {
                k: [one.name, len(one.inputs)]
                for k, one in zip(sources.folders, known, strict=True)
            },
            "made_with": {"geomerge": version("geomerge"), "torch": torch.__version__},
        }
        agree("networks or options", f"{recipe} {sources.configs}")
        if mates.rank:
            return _merged(Path(mates.tell("")), sources, known, options, mates, None)
        recipe["inputs"] = {k: network_digest(folder) for k, folder in sources.folders.items()}
        with resumable_folder(Path(out), recipe) as folder:
            mates.tell(str(folder.absolute()))
            return _merged(folder, sources, known, options, mates, progress)


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


def _check_data(data: DataOptions) -> None:
    """Refuse options of data that sharded merges do not have."""
    for name in ("sketch", "arch", "task"):
        if getattr(data, name):
            raise OptionError(f"a sharded merge has no `{name}`; leave it out")
    if data.device != "cpu":
        raise OptionError(
            f"a sharded merge computes on the CPU, got `device` {data.device}; leave it out, or "
            "merge without shards"
        )


def _known_data(sources: Sources, data: DataOptions) -> list[NetworkData]:
    given, rest = data.manifolds()
    names = [name for name in sources.folders if name not in given]
    if unknown := sorted(given.keys() - sources.folders.keys()):
        raise OptionError(
            f"there is no network {unknown[0]} for its `manifold`; name one of "
            f"{', '.join(sources.folders)}"
        )
    if len(rest) != len(names):
        raise OptionError(
            f"expected a `manifold` for each of {len(sources.folders)} networks, got "
            f"{len(given) + len(rest)}; name the task of each"
        )
    given |= dict(zip(names, rest, strict=True))
    return [_load(sources, name, given[name], data) for name in sources.folders]


def _load(sources: Sources, name: str, task: str | Task, data: DataOptions) -> NetworkData:
    folder, config = sources.folders[name], sources.configs[name]
    examples, normalisations = data.reading.examples, split_normalisations(data.normalisation)
    try:
        if not isinstance(task, str):
            found = task
        elif is_text_file(task):
            found = load_encoded_task(Path(task), text_encoder(folder, config), examples)
        else:
            found = load_task(
                task, data_root=data.data_root, download=data.download, files=examples,
                normalisation=normalisations.get(task),
            )  # fmt: skip
        inputs, known = found.train.inputs, found
    except NoLabelsError as error:
        inputs, known, found = error.inputs, None, None
    if data.max_inputs is not None:
        inputs = inputs.sample(data.max_inputs, _SAMPLE_SEED)
    return NetworkData(task if isinstance(task, str) else task.name, inputs, known)


@dataclass
class _Merge:
    """State of a merge in one process."""

    network: ShardedNetwork
    sources: Sources
    known: list[NetworkData]
    options: ShardedOptions
    mates: Team
    teachers: list[Teacher] = field(default_factory=list)
    experts: dict[str, dict[str, float]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether points can be compared by accuracies on selection splits."""
        return all(one.task is not None for one in self.known)

    @property
    def dtype(self) -> str:
        """Type of the written weights."""
        return self.options.dtype or self.sources.dtype or "float32"

    def round(self) -> None:
        """Round the network's shards to what files of the written type hold.

        Raises:
            OptionError: If a number is too large for the type, in the process that has it.
        """
        for name in self.network.shapes:
            shard = self.network.shard(name)
            shard.copy_(in_precision({name: shard}, self.dtype)[name])

    def read(self, rows: Callable[[str, int, int], Tensor]) -> None:
        """Set the network's shards, and refuse numbers that are not finite."""
        total = 0.0

        def counted(name: str, start: int, stop: int) -> Tensor:
            nonlocal total
            found = rows(name, start, stop).to(self.network.dtype)
            total += float(found.abs().double().sum())
            return found

        self.network.fill(counted)
        self.sources.check_finite(total, self.mates)

    def accuracies(self, split: str) -> dict[str, float]:
        """Return the accuracy of each head on a split of its task, where there are labels."""
        found = {}
        for name, one in zip(self.sources.folders, self.known, strict=True):
            if one.task is not None:
                self.network.use(self.sources.number(name))
                found[name] = share_right(
                    self.network, getattr(one.task, split), self.options.at_once
                )
        return found

    def listen(self, name: str) -> None:
        """Read a network, and keep its answers to its inputs and its accuracies."""
        self.read(partial(self.sources.rows, name))
        self.network.use(self.sources.number(name))
        one = self.known[self.sources.number(name)]
        targets = answers(self.network, one.inputs, self.options.at_once)
        if one.task is not None and targets.shape[1] < one.task.classes:
            raise TaskError(
                f"{self.sources.folders[name]} has {targets.shape[1]} outputs and {one.name} has "
                f"{one.task.classes} classes; name the task that it was fine-tuned for"
            )
        self.teachers.append(Teacher(one.inputs, targets))
        if one.task is not None:
            self.experts[name] = {
                split: share_right(self.network, getattr(one.task, split), self.options.at_once)
                for split in ("select", "test")
            }


def _merged(
    folder: Path,
    sources: Sources,
    known: list[NetworkData],
    options: ShardedOptions,
    mates: Team,
    progress: Callable[[Progress], None] | None,
) -> dict[str, Any]:
    network = ShardedNetwork(sources.module(), mates)
    run = _Merge(network, sources, known, options, mates)
    run.read(partial(sources.mean_rows, dtype=network.dtype))
    held = network.probe([(one.name, one.inputs.batch(slice(0, 1))) for one in known])
    layout = Layout(network)
    saved = Saved(folder / _WORK, mates)
    metrics, places = [], []
    first = not saved.values
    for name in sources.folders:
        run.listen(name)
        if first and options.start_at == "kronecker-mean":
            metrics.append(_measured(run, layout, name))
            places.append(layout.gathered(network.shard))
    run.read(partial(sources.mean_rows, dtype=network.dtype))
    if metrics:
        _to_mean(run, layout, metrics, places)
    del metrics, places
    _walk(run, layout, saved, progress)
    run.round()
    notes = _notes(run, held)
    report = {
        "networks": {
            k: {"folder": str(f), "task": one.name, **run.experts.get(k, {})}
            for (k, f), one in zip(sources.folders.items(), known, strict=True)
        },
        "head": sources.head,
        "own_layers": sources.own,
        "options": recorded(options),
        "points": saved.values["points"],
        "picked": saved.values["best"],
        "test": run.accuracies("test"),
        "notes": notes,
        "processes": mates.size,
    }
    _write(folder, run, report)
    mates.wait()
    return report


def _measured(run: _Merge, layout: Layout, name: str) -> KroneckerMetric:
    """Return the metric of a network at its own weights, on its own inputs."""
    how = run.options.measuring
    inputs = run.known[run.sources.number(name)].inputs.sample(how.inputs, how.seed)
    return measure_sharded(
        run.network, layout, inputs, output=how.output, seed=how.seed, at_once=how.at_once
    )


def _to_mean(
    run: _Merge, layout: Layout, metrics: list[KroneckerMetric], places: list[Tensor]
) -> None:
    """Move the network from the mean to the mean in the metrics of all, solved by the owners."""

    def smallest(own: float | None) -> float | None:
        all_of = run.mates.all_rows(
            torch.tensor([math.inf if own is None else own], dtype=torch.float64)
        )
        found = float(all_of.min())
        return found if math.isfinite(found) else None

    anchor = layout.gathered(run.network.shard)
    mean = KroneckerMean(metrics, places, anchor, smallest=smallest).at(START_DAMPING)
    for name, part in layout.returned(mean):
        run.network.shard(name).copy_(part)


def _walk(
    run: _Merge, layout: Layout, saved: Saved, progress: Callable[[Progress], None] | None
) -> None:
    """Walk to the end, from the last checkpoint on, and go to the picked point."""
    network, mates, options = run.network, run.mates, run.options
    count = len(run.teachers)
    selection = {k: own["select"] for k, own in run.experts.items()}
    rule = parse_pick("balanced", selection) if run.labelled else None
    taken = saved.values.get("step", 0)
    walk = ShardedWalk(network, layout, run.teachers, options.walk(count), options.measuring, taken)
    if saved.values:
        run.points = list(saved.values["points"])
        ended = walk.taken == walk.steps
        if not walk.due and not ended and "measured" in saved.values["folders"]:
            load_shards(saved.folder("measured"), _weights(network), mates)
            walk.measure()
        _restore(layout, network, saved, walk)
    else:
        _checkpoint(run, layout, saved, walk, rule)
    while walk.taken < walk.steps:
        if walk.due:
            measured = f"measured-{walk.taken}"
            save_shards(saved.place / measured, _weights(network), mates)
            saved.pending["measured"] = measured
            walk.measure()
        walk.step()
        if walk.taken % (options.interval * count) == 0 or walk.taken == walk.steps:
            _checkpoint(run, layout, saved, walk, rule)
        if progress is not None:
            progress(
                Progress("toward all functions", walk.taken, walk.steps, run.points[-1]["select"])
            )
    if saved.values["best"] != walk.taken:
        load_shards(saved.folder("best"), _weights(network), mates)


def _weights(network: ShardedNetwork) -> dict[str, Any]:
    return {name: network.whole(name) for name in network.shapes}


def _state(network: ShardedNetwork, momentum: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return weights and momentum as distributed tensors, each under its name."""
    found = {f"weights.{name}": whole for name, whole in _weights(network).items()}
    return found | {f"momentum.{k}": network.placed(k, part) for k, part in momentum.items()}


def _restore(layout: Layout, network: ShardedNetwork, saved: Saved, walk: ShardedWalk) -> None:
    """Go to the point of the last checkpoint."""
    momentum = dict(layout.returned(walk.momentum))
    load_shards(saved.folder("point"), _state(network, momentum), network.mates)
    walk.momentum = layout.gathered(momentum.__getitem__)


def _checkpoint(
    run: _Merge, layout: Layout, saved: Saved, walk: ShardedWalk, rule: PickRule | None
) -> None:
    """Measure the point on the selection splits, and write what the walk goes on from."""
    now = run.accuracies("select")
    run.points.append({"step": walk.taken, "select": now})
    best = saved.values.get("best")
    if best is None or rule is None or _value(rule, run.points, best) < rule.value(Score(now)):
        best = walk.taken
        save_shards(saved.place / f"best-{best}", _weights(run.network), run.mates)
        saved.pending["best"] = f"best-{best}"
    state = _state(run.network, dict(layout.returned(walk.momentum)))
    save_shards(saved.place / f"point-{walk.taken}", state, run.mates)
    saved.pending["point"] = f"point-{walk.taken}"
    saved.write({"step": walk.taken, "best": best, "points": run.points})


def _value(rule: PickRule, points: Sequence[Mapping[str, Any]], step: int) -> float:
    """Return the value of an earlier point."""
    return rule.value(Score(next(point["select"] for point in points if point["step"] == step)))


def _notes(run: _Merge, held: Sequence[str]) -> list[str]:
    notes = []
    if held:
        few = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
        notes.append(f"{few} have no form of the metric here, and stay at the mean of all networks")
    if not run.labelled:
        blind = [k for k, one in zip(run.sources.folders, run.known, strict=True) if not one.task]
        notes.append(
            f"there are no labels for {' and '.join(blind)}: the last point of the walk is taken"
        )
    if run.sources.own:
        notes.append(f"each network keeps layers of its own: {', '.join(run.sources.own)}")
    return notes


def _write(folder: Path, run: _Merge, report: dict[str, Any]) -> None:
    """Write the merged network as a model folder, or one for each head, and the report."""
    sources, network = run.sources, run.network
    places = {"a": ""}
    if sources.own:
        places = distinct_names(sources.folders, {_WORK})
    for name, own in places.items():
        source = sources.folders[name]
        tensors = {}
        for parameter in network.shapes:
            stored = sources.stored_name(parameter, name)
            if stored is not None:
                tensors[stored] = network.whole(parameter).to(getattr(torch, run.dtype))
        place = folder / own
        save_model(place, tensors, run.mates)
        del tensors
        if run.mates.rank == 0:
            config = json.dumps(sources.config(name, run.dtype), indent=2) + "\n"
            write_bytes(place / CONFIG, config.encode())
            copy_other_files(source, place)
    if run.mates.rank == 0:
        write_bytes(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
