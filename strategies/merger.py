"""What the strategy and the plugin share: snapshot, merge, write back, remember."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import torch
from avalanche.benchmarks.scenarios.online import OnlineCLExperience
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from geomerge.continual.experience import merge_expert
from geomerge.continual.memory import TaskMemory, fit_memory, remember
from geomerge.continual.report import MergeReport
from geomerge.continual.settings import ContinualOptions
from geomerge.data import as_they_are
from geomerge.errors import NumericalError, OptionError
from geomerge.networks.network import Network
from geomerge.options import check_known
from geomerge.strategies.experience import collect, task_label
from geomerge.strategies.in_place import evaluate_again, write

__all__ = ["Merger", "merge_settings"]


def merge_settings(
    settings: ContinualOptions | None,
    memory: str | int | None,
    manifold: str | int | None,
    labels: bool | None,
) -> ContinualOptions:
    """Return settings with those that are given apart.

    Raises:
        OptionError: If one is not known or out of range.
    """
    found = ContinualOptions() if settings is None else settings
    if isinstance(memory, str):
        check_known("memory", memory, ("sketch",))
    given: dict[str, Any] = {
        "examples": 0 if memory == "sketch" else memory,
        "manifold": manifold,
        "labels": labels,
    }
    return replace(found, **{k: v for k, v in given.items() if v is not None})


class _HeadView(nn.Module):
    """A model as a function of the inputs of one task.

    Args:
        model: An Avalanche model.
        head: The task's label; None for a model that takes none.
    """

    def __init__(self, model: nn.Module, head: int | None) -> None:
        super().__init__()
        self.model = model
        self._head = head

    def forward(
        self,
        x: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits."""
        out: Tensor = self.model(x) if self._head is None else self.model(x, self._head)
        return out


class Merger:
    """Merges each expert into the network before it, and remembers each task.

    Args:
        settings: Of the merges.
    """

    def __init__(self, settings: ContinualOptions) -> None:
        self.settings = settings
        self.memory: list[TaskMemory] = []
        self.reports: list[MergeReport] = []
        self.before: dict[str, Tensor] = {}
        self._began = 0.0

    @property
    def memory_bytes(self) -> int:
        """Bytes kept of all earlier tasks."""
        return sum(task.nbytes for task in self.memory)

    def begin(self, strategy: Any) -> None:
        """Keep the network before an experience; its heads must have grown.

        Raises:
            OptionError: If the stream is split for online learning, an experience has several task
                labels and the model a head for each, or the model is not of float32.
        """
        if isinstance(strategy.experience, OnlineCLExperience):
            raise OptionError(
                "a merge needs whole experiences and this stream is split for online learning; "
                "train on the stream that it was made from"
            )
        if is_multi_task_module(strategy.model):
            task_label(strategy.experience)
        wrong = {str(t.dtype) for _, t in _tensors(strategy.model)} - {"torch.float32"}
        if wrong:
            raise OptionError(
                f"the model holds {', '.join(sorted(wrong))}, expected torch.float32 throughout; "
                "call model.float()"
            )
        self.before = {k: t.detach().clone() for k, t in _tensors(strategy.model)}
        self._began = time.perf_counter()

    def finish(self, strategy: Any) -> None:
        """Merge the expert that was trained into the network before, in place, and remember it.

        Raises:
            NumericalError: If its weights are not finite, or the walk diverges at any rate.
            OptionError: If a setting does not fit the model or the experience.
        """
        trained = time.perf_counter()
        experience = strategy.experience
        head = task_label(experience) if is_multi_task_module(strategy.model) else None
        number = len(self.memory)
        settings = replace(self.settings, seed=self.settings.seed + number)
        x, labels = collect(experience, settings.inputs, settings.seed)
        inputs = as_they_are(x, strategy.device)

        model = copy.deepcopy(strategy.model)
        views: dict[int | None, Network] = {}

        def network_of(wanted: int | None) -> Network:
            if wanted not in views:
                views[wanted] = Network(_HeadView(model, wanted), strategy.device)
            return views[wanted]

        network = network_of(head)
        w = expert = network.initial
        name = f"task {number}"
        if not bool(expert.isfinite().all()):
            raise NumericalError(
                f"the weights trained on {name} are not finite, expected finite ones; train with a "
                "smaller learning rate"
            )
        if self.memory:
            start = _before(self.before, network, expert)
            w, report = merge_expert(
                start, expert, inputs, self.memory, network_of, settings,
                task=name, head=head, labels=labels, free=_free(strategy.model, network),
            )  # fmt: skip
            named = network.unravel(w)
            write(strategy.model, {k.removeprefix("model."): v for k, v in named.items()})
            evaluate_again(strategy)
        self.memory.append(remember(network, w, inputs, name, head, settings, settings.seed))
        if settings.memory_limit is not None:
            self.memory = fit_memory(self.memory, settings.memory_limit, network_of, w)
        if number:
            self.reports.append(
                replace(
                    report,
                    memory={task.name: task.nbytes for task in self.memory},
                    kept={task.name: task.kept for task in self.memory},
                    expert_seconds=trained - self._began,
                    merge_seconds=time.perf_counter() - trained,
                )
            )
        self.before = {}


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]


def _free(model: nn.Module, network: Network) -> Tensor | None:  # (n,)
    """Return the mask of weights that may move; None where none is frozen."""
    frozen = ["model." + name for name, p in model.named_parameters() if not p.requires_grad]
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
    """Return the weights before; an evaluation may have added heads, which are the expert's."""
    start = expert.clone()
    views = network.unravel(start)
    for name, tensor in tensors.items():
        view = views["model." + name]
        view[: len(tensor)].copy_(tensor) if tensor.dim() else view.copy_(tensor)
    return start
