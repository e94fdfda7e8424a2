"""Merge after each experience, shared by the strategy and the plugin."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.continual.memory import (
    LARGEST_GAP,
    Experience,
    TaskMemory,
    bytes_by_kind,
    check_continuous,
    pseudo_input_gap,
    remember,
)
from geomerge.continual.memory_limit import fit_memory, limit_bytes, with_running_metric
from geomerge.continual.merge import merge_expert
from geomerge.continual.options import ContinualOptions
from geomerge.continual.report import MergeReport
from geomerge.data import as_they_are
from geomerge.errors import NumericalError, OptionError
from geomerge.networks.network import Network
from geomerge.networks.wrappers import mark_merged, plain_module, was_merged
from geomerge.options import replace_options
from geomerge.strategies.avalanche import OnlineCLExperience
from geomerge.strategies.experience import collect, heads_of
from geomerge.strategies.feature_merger import FeatureMerger, report_of
from geomerge.strategies.head_networks import HeadNetworks
from geomerge.strategies.in_place import evaluate_again, write
from geomerge.strategies.memory_check import PROBED, MemoryCheck

__all__ = ["Merger"]

WITHOUT_MEMORY = (
    "the model was merged or learned by a strategy before, and this one starts without the memory "
    "of what it learned then, so it may forget that; to go on with the memory, save the strategy "
    "that learned it with geomerge.strategies.save_strategy(strategy, file), and resume it with "
    "maybe_load_checkpoint"
)


class Merger:
    """Merges each expert into the network before it, and remembers each task.

    Args:
        options: Options of the merges.

    Attributes:
        options: Options of the merges.
        memory: Memory of each task, where the head is trained.
        features: Merges in feature space, where the head is a discriminant.
        reports: Report of each merge, one for every head of every experience after the first.
        before: Tensors of the network before the experience that is being learned.
    """

    def __init__(self, options: ContinualOptions) -> None:
        self.options = options
        self.memory: list[TaskMemory] = []
        self.features = FeatureMerger(options)
        self.reports: list[MergeReport] = []
        self.before: dict[str, Tensor] = {}
        self._began = 0.0
        self._head = options.features.head
        self._check = MemoryCheck(options)
        # What waits for a merge: inputs and labels of each head, by experience.
        self._window: list[dict[int | None, tuple[Tensor, Tensor]]] = []
        self._notes: list[str] = []  # for the next report

    @property
    def memory_bytes(self) -> int:
        """Number of bytes stored of all earlier tasks, and of inputs that wait for a merge."""
        statistics = self.features.memory
        parts = [part for experience in self._window for part in experience.values()]
        waiting = sum(x.nbytes + labels.nbytes for x, labels in parts)
        learned = sum(t.nbytes for t in self.memory)
        return waiting + learned + (0 if statistics is None else statistics.nbytes)

    @property
    def waiting(self) -> int:
        """Number of experiences that wait for a merge."""
        return len(self._window)

    def begin(self, strategy: Any) -> None:
        """Copy the network before an experience; its heads must have grown.

        Raises:
            OptionError: If the stream is split for online learning and every experience merged,
                pseudo-inputs are wanted of inputs that have none, the model is not of float32, a
                discriminant cannot be written into it, or the memory is too small.
        """
        if isinstance(strategy.experience, OnlineCLExperience) and self.options.merge_every == 1:
            raise OptionError(
                "a merge after every experience of a stream that is split for online learning "
                "would be one after every few steps; give `merge_every` as the number of "
                "experiences that are merged as one"
            )
        model = plain_module(strategy.model)
        heads = heads_of(strategy.experience, model)
        probed = 2 if self.options.memory.memory_mb is None else PROBED
        if self._window:
            seen = {head for experience in self._window for head in experience}
            added = [head for head in heads if head not in seen]
            if added:
                x, tasks = self._few(strategy, probed), len(self.memory) + len(seen) + len(added)
                self._check.before_training(strategy, x, heads, self._head, tasks, self.features)
                if self._head == "discriminant":
                    self._begin_features(strategy, x, added)
            return
        if not self.memory and self.features.memory is None and was_merged(model):
            warnings.warn(WITHOUT_MEMORY, UserWarning, stacklevel=2)
        x = self._few(strategy, probed)
        if self.options.memory.pseudo_inputs and self._head != "discriminant":
            check_continuous(as_they_are(x))
        wrong = {str(t.dtype) for _, t in _tensors(model)} - {"torch.float32"}
        if wrong:
            raise OptionError(
                f"the model holds {', '.join(sorted(wrong))}, expected torch.float32 throughout; "
                "call model.float()"
            )
        self._check.before_training(
            strategy, x, heads, self._head, len(self.memory) + len(heads), self.features
        )
        self.features.release()
        self.before = _copied(model)
        if self._head == "discriminant":
            self._begin_features(strategy, x, heads)
        self._began = time.perf_counter()

    def _few(self, strategy: Any, count: int) -> Tensor:
        """Return some inputs of an experience."""
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed: training must not notice
            return collect(strategy.experience, count, self.options.seed)[0]

    def _begin_features(self, strategy: Any, x: Tensor, heads: list[int | None]) -> None:
        """Prepare the training of an expert whose heads will be discriminants."""
        model, few = plain_module(strategy.model), x[:2].to(strategy.device)
        seed = self.options.seed + strategy.clock.train_exp_counter
        for head in heads:
            self.features.begin(model, self.features.classifier(model, few, head), seed)

    def finish(self, strategy: Any, now: bool = False) -> None:
        """Merge the trained expert into the network before, in place, and remember the task.

        Nothing is changed before everything has succeeded: expert, memory and the inputs that wait
        stay as they were where it fails. Where several experiences are merged as one, inputs of all
        but the last of them are stored only. Where the expert has trained several heads, each is a
        task of its own: one after the other is merged, toward the same expert.

        Args:
            strategy: The strategy, after an experience.
            now: Whether what waits is merged whatever number has come, without a new experience.

        Raises:
            NumericalError: If its weights are not finite, or the walk diverges at any rate.
            OptionError: If an option does not fit the model or the experience, or the memory is too
                small.
        """
        if not now:
            heads = heads_of(strategy.experience, plain_module(strategy.model))
            most, several = self.options.inputs, len(heads) > 1
            self._window.append(
                {
                    head: collect(strategy.experience, most, self._seed, head if several else None)
                    for head in heads
                }
            )
            if len(self._window) < self.options.merge_every:
                return
        parts: dict[int | None, list[tuple[Tensor, Tensor]]] = {}
        for experience in self._window:
            for head, part in experience.items():
                parts.setdefault(head, []).append(part)
        self._merge_heads(strategy, parts)
        self._window, self.before = [], {}
        self.features.release()
        mark_merged(plain_module(strategy.model))

    def _merge_heads(
        self, strategy: Any, parts: dict[int | None, list[tuple[Tensor, Tensor]]]
    ) -> None:
        """Merge one head after the other; all is as before where one fails."""
        model, first, before = plain_module(strategy.model), not self._learned, self.before
        expert = _copied(model) if len(parts) > 1 else {}
        began, trained = self._began, time.perf_counter()
        known = self.memory, self.features.memory, list(self.reports), list(self._notes), self._head
        try:
            for k, (head, of_head) in enumerate(parts.items()):
                if k:
                    self.before = _copied(model)
                    write(model, expert)
                x, labels = (torch.cat([part[i] for part in of_head]) for i in (0, 1))
                self._merge(strategy, x, labels, head, first, 0.0 if k else trained - began)
        except BaseException:
            self.memory, self.features.memory, self.reports, self._notes, self._head = known
            self.before = before
            write(model, expert)
            raise

    @property
    def _learned(self) -> int:
        """Number of tasks that are remembered."""
        return len(self.memory) if self.features.memory is None else self.features.memory.tasks

    @property
    def _seed(self) -> int:
        return self.options.seed + self._learned

    def _merge(
        self,
        strategy: Any,
        x: Tensor,
        labels: Tensor,
        head: int | None,
        first: bool,
        training: float,
    ) -> None:
        """Merge the expert of these inputs and labels; a first expert is taken as it is.

        Args:
            strategy: The strategy.
            x: Inputs of a head.
            labels: Their labels.
            head: Task label of the head; None for a model with one.
            first: Whether there is no network before.
            training: Seconds of the expert's training that the report counts.
        """
        began, number = time.perf_counter(), self._learned
        options = replace_options(self.options, seed=self._seed)
        task = Experience(as_they_are(x, strategy.device), f"task {number}", head, labels)
        model = plain_module(strategy.model)
        networks = HeadNetworks(model, strategy.device)
        network = networks(task.head)
        if not bool(network.initial.isfinite().all()):
            raise NumericalError(
                f"the weights trained on {task.name} are not finite, expected finite ones; train "
                "with a smaller learning rate"
            )
        limit = limit_bytes(options.memory.memory_mb, network.initial.nbytes)
        if self._head == "auto":
            self._choose_head(model, network, task)
        report: MergeReport | None
        if self._head == "discriminant":
            report = self._merge_features(model, task, limit)
        else:
            report = self._merge_all(strategy, task, networks, limit, options, first)
        if report is not None and not first:
            evaluate_again(strategy)
            self.reports.append(
                replace(
                    report,
                    notes=[*self._notes, *report.notes],
                    expert_seconds=training,
                    merge_seconds=time.perf_counter() - began,
                )
            )
            self._notes = []

    def _merge_all(
        self,
        strategy: Any,
        task: Experience,
        networks: HeadNetworks,
        limit: int,
        options: ContinualOptions,
        first: bool,
    ) -> MergeReport | None:
        """Merge head and all, and remember the task."""
        network = networks(task.head)
        w, report = network.initial, None
        if not first:
            start = _before(self.before, network, w)
            w, report = merge_expert(
                start, w, task, self.memory, networks, options,
                free=_free(strategy, network),
            )  # fmt: skip
        memory = [*self.memory, remember(network, w, task, options)]
        if not options.tells_tasks_apart:
            memory = with_running_metric(memory, networks)
        self.memory = fit_memory(memory, limit, networks, w)
        if report is None:
            return None
        named = network.unravel(w)
        write(plain_module(strategy.model), {k.removeprefix("model."): v for k, v in named.items()})
        return replace(
            report,
            memory={known.name: known.nbytes for known in self.memory},
            stored=bytes_by_kind(self.memory),
            kept={known.name: known.kept for known in self.memory},
        )

    def _merge_features(self, model: nn.Module, task: Experience, limit: int) -> MergeReport:
        """Merge below the head, and write the head from class statistics."""
        merge = self.features.merge(model, self.before, task, limit)
        self.features.write(model, merge, task)
        memory = merge.memory
        return replace(
            report_of(merge, task), memory={"all tasks": memory.nbytes}, stored=memory.by_kind
        )

    def _choose_head(self, model: nn.Module, network: Network, task: Experience) -> None:
        """Take the trained head where pseudo-inputs pass for inputs, else the discriminant."""
        self._head = "trained"
        try:
            features = self.features.network(model, task)
        except OptionError:  # no classifier that could be written
            return
        gap = pseudo_input_gap(network, features, task, self.options)
        if gap is not None and gap > LARGEST_GAP:
            self._head = "discriminant"
            self._notes.append(
                "the features of pseudo-inputs of the first experience differ from those of inputs "
                f"by {gap:.2f} deviations, over {LARGEST_GAP}: the head is the discriminant of "
                "class statistics"
            )


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(model)}


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]


def _free(strategy: Any, network: Network) -> Tensor | None:  # (n,)
    """Return the mask of the weights that may move; None where no weight is frozen.

    Frozen are weights that require no gradient, and those that the optimizer does not hold.
    """
    groups = strategy.optimizer.param_groups
    trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    parameters = plain_module(strategy.model).named_parameters()
    frozen = ["model." + name for name, p in parameters if id(p) not in trained]
    if not frozen:
        return None
    free = torch.ones(network.n, dtype=torch.bool, device=network.device)
    for name in frozen:
        free[network.slices[name]] = False
    return free


def _before(
    tensors: dict[str, Tensor],
    network: Network,
    expert: Tensor,  # (n,)
) -> Tensor:  # (n,)
    """Return the weights before; heads that an evaluation has added are the expert's."""
    start = expert.clone()
    views = network.unravel(start)
    for name, tensor in tensors.items():
        view = views["model." + name]
        view[: len(tensor)].copy_(tensor) if tensor.dim() else view.copy_(tensor)
    return start
