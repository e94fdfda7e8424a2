"""Pruning problems: a network, inputs on which its function is preserved, and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from geomerge.data import Inputs, Split, Task
from geomerge.data.batchnorm import has_statistics, re_estimate
from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.expert_like import ExpertLike, as_expert
from geomerge.metrics import Metric, measure_metric, output_map
from geomerge.networks.autocast import precision_notes
from geomerge.networks.network import Network
from geomerge.pruning.cost import METRIC_PASSES, Cost
from geomerge.pruning.held_out import HeldOut, hold_out
from geomerge.pruning.options import FunctionOptions
from geomerge.pruning.units import Units, find_units

__all__ = ["PruneProblem", "prepare_problem"]

METRIC_INPUTS = 2000  # inputs per measurement of the metric
MEASURED_INPUTS = 1000  # inputs of the selection split on which functional changes are measured
FEW = 500  # inputs on which the progress of a walk is measured
FEW_INPUTS = 10_000  # number of inputs below which mixup is the default
MIXED_SHARE = 0.5
_STATISTICS_INPUTS = 2000


@dataclass(frozen=True, eq=False)
class PruneProblem:
    """A network whose function is preserved while weights or units are removed.

    Attributes:
        expert: Network with its weights and its task.
        inputs: Inputs on which the function is preserved.
        train: Examples of the training split, for a final leg with labels.
        options: Options of the function to preserve.
        mix: Largest share of a second input in mixed inputs; 0 for no mixup.
        bn: Treatment of running statistics, ``"keep"`` or ``"re-estimate"``; None without any.
        seed: Seed of samples and orders of inputs.
        cost: Cost of measurements and walks so far.
    """

    expert: Expert
    inputs: Inputs
    train: Split
    options: FunctionOptions
    mix: float
    bn: str | None
    seed: int
    cost: Cost = field(default_factory=Cost)

    @property
    def network(self) -> Network:
        """Network with the outputs of its task."""
        return self.expert.network

    @property
    def weights(self) -> Tensor:  # (n,)
        """Weights of the dense network."""
        return self.expert.weights

    @property
    def output(self) -> str:
        """Name of the output whose change is measured."""
        return self.options.geometry.output

    @property
    def notes(self) -> list[str]:
        """Assumptions about the network, and tasks whose functions are not preserved."""
        others = [name for name in self.expert.meta.get("tasks", {}) if name != self.task.name]
        notes = [*self.expert.warnings, *self.expert.notes]
        notes += precision_notes(self.options.precision, self.network.device)
        if others:
            notes.append(
                f"the function was kept on {self.task.name} alone; the network was also trained "
                f"for {' and '.join(others)}"
            )
        return notes

    @property
    def task(self) -> Task:
        """Task of the network; labels are used only for reports and in a leg with labels."""
        assert self.expert.task is not None
        return self.expert.task

    @cached_property
    def units(self) -> Mapping[str, Units]:
        """Removable units, by the name of each layer."""
        return find_units(self.network, self.inputs.batch(slice(0, 2)))

    @cached_property
    def outputs(self) -> Tensor:  # (N, m)
        """Outputs phi of the dense network on the inputs."""
        self.cost.add_once("outputs", len(self.inputs))
        batches = self.inputs.batches()
        logits = [self.network.logits_by_precision(self.weights, x) for x in batches]
        return output_map(torch.cat(logits), self.output)

    @cached_property
    def large_drift(self) -> float:
        """Half the mean of |phi|^2, the drift of a lost function."""
        phi = output_map(self.held_out.intact, self.output)
        return float(phi.square().sum(dim=1).mean() / 2)

    @cached_property
    def selection(self) -> HeldOut:
        """Selection split with the dense network's logits; labels are used only for reports."""
        return hold_out(self.network, self.weights, self.task.select, self.output)

    @cached_property
    def held_out(self) -> HeldOut:
        """Sample of the selection split on which functional changes are measured."""
        few = _drawn(self.task.select, MEASURED_INPUTS, self.seed)
        return hold_out(self.network, self.weights, few, self.output)

    @cached_property
    def dense_labels(self) -> Split:
        """Selection inputs with the labels that the dense network assigns."""
        return Split(self.task.select.inputs, self.selection.intact.argmax(dim=1))

    @cached_property
    def few_dense_labels(self) -> Split:
        """First selection inputs with the labels of the dense network, for progress."""
        return self.dense_labels.first(FEW)

    def metric_at(
        self,
        w: Tensor,  # (n,)
    ) -> Metric:
        """Measure the metric on a sample of the inputs; the dense network's is cached."""
        if w is self.weights:
            return self._dense_metric
        metric, passes = self._measured(w)
        self.cost.add(passes)
        return metric

    @cached_property
    def _dense_metric(self) -> Metric:
        metric, passes = self._measured(self.weights)
        self.cost.add_once("first metric", passes)
        return metric

    def _measured(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[Metric, int]:
        """Return the metric at a point and the number of passes of its measurement."""
        sample = self.inputs.sample(METRIC_INPUTS, self.seed)
        metric = measure_metric(self.network, w, sample, self.options.geometry, seed=self.seed)
        return metric, 0 if metric.isotropic else METRIC_PASSES * len(sample)

    def settle(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return the weights, with running statistics re-estimated if the options say so."""
        if self.bn != "re-estimate":
            return w
        self.cost.add(min(_STATISTICS_INPUTS, len(self.inputs)))
        return re_estimate(self.network, w, [self.inputs], self.seed)


def prepare_problem(thing: ExpertLike, options: FunctionOptions, seed: int) -> PruneProblem:
    """Return the problem of an expert.

    Args:
        thing: Network with its task; for a file the recorded task is loaded.
        options: Options of the function to preserve.
        seed: Seed of samples and orders of inputs.

    Raises:
        GeomergeError: If the network or its task is invalid, or there is no task.
    """
    expert = as_expert(thing, "network")
    if expert.task is None:
        why = f" ({expert.notes[-1]})" if expert.notes else ""
        raise OptionError(
            f"{expert.source} has no task whose function is to be kept{why}; name it as in "
            "Expert.load(file, task) or Expert.from_module(module, task)"
        )
    inputs, train = expert.inputs or expert.task.train.inputs, expert.task.train
    if options.inputs is not None:
        inputs = inputs.sample(options.inputs, seed)
        train = _drawn(train, options.inputs, seed)
    if options.mix and not inputs.continuous:
        raise OptionError(
            f"`mix` needs inputs of floats or pixels, those of {expert.task.name} are integers; "
            "leave it out"
        )
    expert = expert.with_precision(options.precision)
    bn = (options.bn or "re-estimate") if has_statistics(expert.network) else None
    return PruneProblem(expert, inputs, train, options, _mixed_share(inputs, options), bn, seed)


def _mixed_share(inputs: Inputs, options: FunctionOptions) -> float:
    if not inputs.continuous:
        return 0.0
    if options.mix is not None:
        return options.mix
    return MIXED_SHARE if len(inputs) < FEW_INPUTS else 0.0


def _drawn(split: Split, count: int, seed: int) -> Split:
    """Return at most ``count`` examples, sampled like :meth:`Inputs.sample`."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(split.labels), generator=generator)[:count]
    return Split(split.inputs.sample(count, seed), split.labels[index.to(split.labels.device)])
