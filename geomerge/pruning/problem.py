"""The network that is to change, and what its function is kept on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from geomerge.data import Inputs, Split, Task, normalisation_of
from geomerge.data.batchnorm import has_statistics, re_estimate
from geomerge.errors import OptionError
from geomerge.evaluation.files import head_for, task_for
from geomerge.io.checkpoint import Checkpoint
from geomerge.metrics import METRICS, Metric, functional_change, measure_metric, output_map
from geomerge.networks.architectures import rebuild_network
from geomerge.networks.network import Network
from geomerge.pruning.held_out import HeldOut, hold_out
from geomerge.pruning.options import SparsifyOptions
from geomerge.pruning.units import Units, find_units
from geomerge.walks.state import WalkState

__all__ = ["Cost", "Subject", "prepare_subject"]

METRIC_INPUTS = 2000  # per measurement
MEASURED_INPUTS = 1000  # of the selection split, for functional changes
FEW = 500
FEW_INPUTS = 10_000  # below, inputs are mixed unless told otherwise
MIXED_SHARE = 0.5
_METRIC_PASSES = 5  # a forward pass and two backward ones, in forward passes
STEP_PASSES = 3  # a forward and a backward pass


class Cost:
    """What was spent, in forward passes of one input.

    A backward pass counts as two; so do the two passes of a Kronecker metric.
    """

    def __init__(self) -> None:
        self._known: dict[str, Any] = {"passes": 0, "once": []}

    @property
    def passes(self) -> int:
        """Of one input."""
        return int(self._known["passes"])

    def add(self, passes: int) -> None:
        """Count passes."""
        self._known["passes"] += passes

    def add_once(self, what: str, passes: int) -> None:
        """Count passes that are made again only where a walk was interrupted."""
        if what not in self._known["once"]:
            self._known["once"].append(what)
            self.add(passes)

    @contextmanager
    def free(self) -> Iterator[None]:
        """Count nothing of what the block does: it was counted before an interruption."""
        before = self.passes
        yield
        self._known["passes"] = before

    def kept_in(self, state: WalkState) -> None:
        """Count in a walk's state from now on, from what it says if it was interrupted."""
        if not state.values:
            state.values = copy.deepcopy(self._known)
        self._known = state.values

    def epochs(self, examples: int) -> float:
        """Return it in epochs of training: three passes over the training data."""
        return self.passes / (STEP_PASSES * examples)


@dataclass(frozen=True)
class Subject:
    """A network on its manifold.

    Attributes:
        checkpoint: Where it came from.
        network: The network, with the outputs that the task uses.
        w: Its weights.
        task: The task; labels are used for reports, and for the walk only where that is asked for.
        train: Examples whose inputs' outputs are kept; their labels are for a leg that asks.
        bn: What happens to running statistics: ``"keep"``, ``"re-estimate"``, or None without.
        options: How.
        cost: What measuring and walking cost so far.
    """

    checkpoint: Checkpoint
    network: Network
    w: Tensor
    task: Task
    train: Split
    bn: str | None
    options: SparsifyOptions
    cost: Cost = field(default_factory=Cost)

    @property
    def manifold(self) -> Inputs:
        """The inputs whose outputs are kept."""
        return self.train.inputs

    @property
    def mix(self) -> float:
        """Largest share of a second input in those the function is kept on."""
        if not self.manifold.continuous:
            return 0.0
        few = MIXED_SHARE if len(self.manifold) < FEW_INPUTS else 0.0
        return few if self.options.mix is None else self.options.mix

    @cached_property
    def units(self) -> Mapping[str, Units]:
        """The units that can be removed, by the name of each layer."""
        return find_units(self.network, self.manifold.batch(slice(0, 2)))

    @cached_property
    def outputs(self) -> Tensor:  # (N, m)
        """Phi on the manifold, of the network as it came."""
        self.cost.add_once("outputs", len(self.manifold))
        logits = self.network.all_logits(self.w, self.manifold.batches())
        return output_map(logits, self.options.output)

    @cached_property
    def large(self) -> float:
        """Half the mean squared length of phi: a drift that leaves nothing of the function."""
        phi = output_map(self.held_out.intact, self.options.output)
        return float(phi.square().sum(dim=1).mean() / 2)

    @cached_property
    def selection(self) -> HeldOut:
        """The selection split; its labels are for reports alone."""
        return hold_out(self.network, self.w, self.task.select, self.options.output)

    @cached_property
    def held_out(self) -> HeldOut:
        """Some of the selection split, for measurements."""
        few = _drawn(self.task.select, MEASURED_INPUTS, self.options.seed)
        return hold_out(self.network, self.w, few, self.options.output)

    @cached_property
    def own_labels(self) -> Split:
        """The selection inputs with the labels that the network as it came gives them."""
        return Split(self.task.select.inputs, self.selection.intact.argmax(dim=1))

    @cached_property
    def own_few(self) -> Split:
        """The first of those with the network's own labels, to watch a walk by."""
        return self.own_labels.first(FEW)

    def meter(self) -> Callable[[Tensor, Tensor], float]:
        """Return what measures the mean functional change of each step of one walk, held out."""
        last: list[tuple[Tensor, Tensor]] = []  # a point and its logits: steps follow each other

        def change(before: Tensor, after: Tensor) -> float:
            if not last or last[0][0] is not before:
                last[:] = [(before, self.held_out.logits(before))]
            now = self.held_out.logits(after)
            self.cost.add(len(self.held_out))
            found = functional_change(last[0][1], now, self.options.output)
            last[:] = [(after, now)]
            return found

        return change

    def metric_at(
        self,
        w: Tensor,  # (n,)
    ) -> Metric:
        """Measure the metric on a sample of the manifold; at the start only once."""
        if w is self.w:
            return self._first_metric
        metric, passes = self._measured(w)
        self.cost.add(passes)
        return metric

    @cached_property
    def _first_metric(self) -> Metric:
        metric, passes = self._measured(self.w)
        self.cost.add_once("first metric", passes)
        return metric

    def _measured(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[Metric, int]:
        """Return the metric at a point and the passes that it takes."""
        options = self.options
        sample = self.manifold.sample(METRIC_INPUTS, options.seed)
        metric = measure_metric(
            self.network, w, sample, seed=options.seed, metric=options.metric, output=options.output
        )
        return metric, _METRIC_PASSES * len(sample) if METRICS[options.metric].needs_inputs else 0

    def settle(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return the weights with running statistics as the policy wants them."""
        if self.bn != "re-estimate":
            return w
        self.cost.add(min(2000, len(self.manifold)))
        return re_estimate(self.network, w, [self.manifold], self.options.seed)


def prepare_subject(checkpoint: Checkpoint, options: SparsifyOptions) -> Subject:
    """Rebuild a network and load its task.

    Args:
        checkpoint: The network.
        options: How.

    Returns:
        The subject.

    Raises:
        GeomergeError: If the network or the task cannot be used.
    """
    name = options.manifold or checkpoint.meta.get("task")
    if name is None:
        raise OptionError(
            f"{checkpoint.source} does not say what it was trained for; name the task with "
            "--manifold"
        )
    architecture = options.arch or checkpoint.meta.get("architecture")
    module = rebuild_network(checkpoint.weights, architecture, checkpoint.source)
    network = head_for(checkpoint, Network(module, options.device), name)
    own = normalisation_of(options.normalisation, name)
    task = task_for(checkpoint, network, name, own, options.data_root, options.download)
    train = task.train
    if options.inputs is not None:
        train = _drawn(train, options.inputs, options.seed)
    manifold = train.inputs
    if options.mix and not manifold.continuous:
        raise OptionError(
            f"--mix needs inputs of floats or pixels, those of {name} are integers; leave it out"
        )
    bn = (options.bn or "re-estimate") if has_statistics(network) else None
    return Subject(checkpoint, network, network.initial, task, train, bn, options)


def _drawn(split: Split, count: int, seed: int) -> Split:
    """Return at most ``count`` examples; their inputs are those of :meth:`Inputs.sample`."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(split.labels), generator=generator)[:count]
    return Split(split.inputs.sample(count, seed), split.labels[index.to(split.labels.device)])
