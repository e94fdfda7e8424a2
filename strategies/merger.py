"""Merge after each experience, shared by the strategy and the plugin."""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geomerge.continual.memory import (
    Experience,
    TaskMemory,
    bytes_by_kind,
    check_continuous,
    remember,
)
from geomerge.continual.memory_limit import fit_memory, usual_limit, with_running_metric
from geomerge.continual.merge import merge_expert
from geomerge.continual.options import ContinualOptions
from geomerge.continual.report import MergeReport
from geomerge.data import as_they_are
from geomerge.errors import NumericalError, OptionError
from geomerge.networks.network import Network
from geomerge.networks.wrappers import mark_merged, plain_module, was_merged
from geomerge.options import check_known, option_fields, replace_options
from geomerge.strategies.avalanche import OnlineCLExperience, is_multi_task_module
from geomerge.strategies.experience import collect, task_label
from geomerge.strategies.in_place import evaluate_again, write

__all__ = ["Merger", "accept_options", "take_options"]

F = TypeVar("F", bound=Callable[..., None])

WITHOUT_MEMORY = (
    "the model was merged or learned by a strategy before, and this one starts without the memory "
    "of what it learned then, so it may forget that; to go on with the memory, save the strategy "
    "that learned it with geomerge.strategies.save_strategy(strategy, file), and resume it with "
    "maybe_load_checkpoint"
)


def accept_options(init: F) -> F:
    """Return a constructor whose signature lists the options of merges among its keywords.

    Avalanche reads signatures to find misspelled arguments, and editors complete them.

    Args:
        init: Constructor with ``**keywords``.
    """
    signature = inspect.signature(init)
    *own, rest = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, keyword, default=field.default, annotation=field.annotation)
        for field in option_fields(ContinualOptions)
        for name in (field.name, field.formerly)
        if name is not None
    ]
    more += [inspect.Parameter(old, keyword, default=None) for old in ("settings", "memory_limit")]
    init.__signature__ = signature.replace(parameters=[*own, *more, rest])  # type: ignore[attr-defined]
    return init


def take_options(
    options: ContinualOptions | None,
    memory: str | int | None,
    keywords: dict[str, Any],
) -> ContinualOptions:
    """Return options of merges, with those among keywords, which are taken out of there.

    Args:
        options: Options; None is the usual ones.
        memory: ``"sketch"`` or the number of examples stored of each task; None as the options say.
        keywords: Keywords, of which those that name options are removed.

    Raises:
        OptionError: If one is not known or out of range.
    """
    if "settings" in keywords:
        warnings.warn("`settings` is called `options` now", DeprecationWarning, stacklevel=3)
        options = keywords.pop("settings")
    fields = list(option_fields(ContinualOptions))
    names = {field.name for field in fields} | {field.formerly for field in fields}
    given = {name: keywords.pop(name) for name in list(keywords) if name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if keywords.get("memory_limit") is not None:
        warnings.warn("`memory_limit` is `memory_mb` now", DeprecationWarning, stacklevel=3)
        given["memory_mb"] = keywords.pop("memory_limit") / 1e6
    if isinstance(memory, str):
        check_known("memory", memory, ("sketch",))
        given["examples"] = 0
    elif memory is not None:
        given["examples"] = memory
    return replace_options(ContinualOptions() if options is None else options, **given)


class _HeadView(nn.Module):
    """Model as a function of the inputs of one task.

    Args:
        model: Model of Avalanche.
        head: Task label; None for a model that takes none.
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
        options: Options of the merges.

    Attributes:
        options: Options of the merges.
        memory: Memory of each task.
        reports: Report of each merge, one for every experience after the first.
        before: Tensors of the network before the experience that is being learned.
    """

    def __init__(self, options: ContinualOptions) -> None:
        self.options = options
        self.memory: list[TaskMemory] = []
        self.reports: list[MergeReport] = []
        self.before: dict[str, Tensor] = {}
        self._began = 0.0

    @property
    def memory_bytes(self) -> int:
        """Number of bytes stored of all earlier tasks."""
        return sum(task.nbytes for task in self.memory)

    def begin(self, strategy: Any) -> None:
        """Copy the network before an experience; its heads must have grown.

        Raises:
            OptionError: If the stream is split for online learning, an experience has several task
                labels and the model a head for each, pseudo-inputs are wanted of inputs that have
                none, or the model is not of float32.
        """
        if isinstance(strategy.experience, OnlineCLExperience):
            raise OptionError(
                "a merge needs whole experiences and this stream is split for online learning; "
                "train on the stream that it was made from"
            )
        model = plain_module(strategy.model)
        if is_multi_task_module(model):
            task_label(strategy.experience)
        if not self.memory and was_merged(model):
            warnings.warn(WITHOUT_MEMORY, UserWarning, stacklevel=2)
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed: training must not notice
            x, _ = collect(strategy.experience, 1, self.options.seed)
        if self.options.memory.pseudo_inputs:
            check_continuous(as_they_are(x))
        wrong = {str(t.dtype) for _, t in _tensors(model)} - {"torch.float32"}
        if wrong:
            raise OptionError(
                f"the model holds {', '.join(sorted(wrong))}, expected torch.float32 throughout; "
                "call model.float()"
            )
        self.before = {k: t.detach().clone() for k, t in _tensors(model)}
        self._began = time.perf_counter()

    def finish(self, strategy: Any) -> None:
        """Merge the trained expert into the network before, in place, and remember the task.

        Raises:
            NumericalError: If its weights are not finite, or the walk diverges at any rate.
            OptionError: If an option does not fit the model or the experience.
        """
        trained = time.perf_counter()
        experience = strategy.experience
        live = plain_module(strategy.model)
        head = task_label(experience) if is_multi_task_module(live) else None
        number = len(self.memory)
        options = replace_options(self.options, seed=self.options.seed + number)
        x, labels = collect(experience, options.inputs, options.seed)
        task = Experience(as_they_are(x, strategy.device), f"task {number}", head, labels)

        model = copy.deepcopy(live)
        views: dict[int | None, Network] = {}

        def network_of(wanted: int | None) -> Network:
            if wanted not in views:
                # Which weights may move is said to the merge; statistics are measured again.
                whole = Network(_HeadView(model, wanted), strategy.device)
                views[wanted] = whole.holding(())
            return views[wanted]

        network = network_of(head)
        w = expert = network.initial
        if not bool(expert.isfinite().all()):
            raise NumericalError(
                f"the weights trained on {task.name} are not finite, expected finite ones; train "
                "with a smaller learning rate"
            )
        if self.memory:
            start = _before(self.before, network, expert)
            w, report = merge_expert(
                start, expert, task, self.memory, network_of, options,
                free=_free(strategy, network),
            )  # fmt: skip
        memory = [*self.memory, remember(network, w, task, options)]
        if not options.tells_tasks_apart:
            memory = with_running_metric(memory, network_of)
        # Nothing is changed before everything has succeeded.
        self.memory = fit_memory(memory, _limit(options, network), network_of, w)
        if number:
            named = network.unravel(w)
            write(live, {k.removeprefix("model."): v for k, v in named.items()})
            evaluate_again(strategy)
            self.reports.append(
                replace(
                    report,
                    memory={known.name: known.nbytes for known in self.memory},
                    stored=bytes_by_kind(self.memory),
                    kept={known.name: known.kept for known in self.memory},
                    expert_seconds=trained - self._began,
                    merge_seconds=time.perf_counter() - trained,
                )
            )
        mark_merged(live)
        self.before = {}


def _limit(options: ContinualOptions, network: Network) -> int:
    """Return the largest number of bytes that the memory may take."""
    given = options.memory.memory_mb
    return usual_limit(network) if given is None else int(given * 1e6)


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
