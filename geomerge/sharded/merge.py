"""Merge of fine-tunes whose weights, metric and steps are spread over processes.

From the folders to the merged one: :mod:`~geomerge.sharded.sources` reads weights by rows,
:mod:`~geomerge.sharded.data` the tasks; :mod:`~geomerge.sharded.experts` sets one sharded network
to each fine-tune in turn and keeps its answers; :mod:`~geomerge.sharded.checkpointed_walk` walks
from their mean toward all of these; :mod:`~geomerge.sharded.written` writes what it found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.expert_options import DataOptions
from geomerge.io.folders import resumable_folder
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.mean import KroneckerMean
from geomerge.monitor.progress import Progress
from geomerge.networks.hugging_face import network_digest
from geomerge.options import recorded, replace_options
from geomerge.processes import Team, agree, together
from geomerge.sharded.checkpoint import Saved
from geomerge.sharded.checkpointed_walk import CheckpointedWalk
from geomerge.sharded.data import NetworkData, load_data, refuse_pick
from geomerge.sharded.experts import Experts
from geomerge.sharded.layout import Layout
from geomerge.sharded.measure import measure_sharded
from geomerge.sharded.network import ShardedNetwork
from geomerge.sharded.options import START_DAMPING, ShardedOptions
from geomerge.sharded.sources import Sources
from geomerge.sharded.written import WORK, merge_report, round_weights, write_merged

__all__ = ["merge_sharded"]


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
    with together() as mates:
        if mates is None:
            raise OptionError(
                "a sharded merge expects several processes, got one; start it with "
                "torchrun, or merge without shards"
            )
        sources = Sources(networks, options.head, None if base is None else Path(base))
        known = load_data(sources, data)
        refuse_pick(options.pick, known)
        recipe: dict[str, Any] = {
            "merge": recorded(options),
            "own": sources.own,
            "data": {name: one.digests for name, one in known.items()},
            "made_with": {"geomerge": version("geomerge"), "torch": torch.__version__},
        }
        agree("networks, data or options", f"{recipe} {sources.configs}")
        if mates.rank:
            return _merged(Path(mates.tell("")), sources, known, options, mates)
        recipe["inputs"] = {k: network_digest(folder) for k, folder in sources.folders.items()}
        with resumable_folder(Path(out), recipe) as folder:
            mates.tell(str(folder.absolute()))
            return _merged(folder, sources, known, options, mates, progress)


def _merged(
    folder: Path,
    sources: Sources,
    known: Mapping[str, NetworkData],
    options: ShardedOptions,
    mates: Team,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    network = ShardedNetwork(sources.module(), mates)
    experts = Experts(network, sources, known, options.at_once)
    experts.to_mean()
    held = network.probe([(one.name, one.inputs.batch(slice(0, 1))) for one in known.values()])
    layout, saved = Layout(network), Saved(folder / WORK, mates)
    measured = options.start_at == "kronecker-mean" and not saved.values
    metrics, places = [], []
    for name in sources.folders:
        experts.listen(name)
        if measured:
            metrics.append(_measured(experts, layout, name, options))
            places.append(layout.gathered(network.shard))
    experts.to_mean()
    if measured:
        _to_kronecker_mean(network, layout, metrics, places)
    del metrics, places
    walk = CheckpointedWalk(experts, layout, saved, options)
    walk.to_picked(progress)
    dtype = options.dtype or sources.dtype or "float32"
    round_weights(network, dtype)
    report = merge_report(experts, walk, options, held)
    write_merged(folder, experts, report, dtype)
    return report


def _measured(
    experts: Experts, layout: Layout, name: str, options: ShardedOptions
) -> KroneckerMetric:
    """Return the metric of a network at its own weights, on its own inputs."""
    how = options.measuring
    inputs = experts.data[name].inputs.sample(how.inputs, how.seed)
    return measure_sharded(
        experts.network, layout, inputs, output=how.output, seed=how.seed, at_once=how.at_once
    )


def _to_kronecker_mean(
    network: ShardedNetwork,
    layout: Layout,
    metrics: Sequence[KroneckerMetric],
    places: Sequence[Tensor],  # (n,)
) -> None:
    """Move the network from the mean to the mean in the metrics of all, solved by the owners."""

    def smallest(own: float | None) -> float | None:
        of_this = torch.tensor([math.inf if own is None else own], dtype=torch.float64)
        found = float(network.mates.all_rows(of_this).min())
        return found if math.isfinite(found) else None

    anchor = layout.gathered(network.shard)
    mean = KroneckerMean(metrics, places, anchor, smallest=smallest).at(START_DAMPING)
    for name, part in layout.returned(mean):
        network.shard(name).copy_(part)
