"""``GeodesicMerge``: Avalanche strategy that merges an expert of every experience."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geomerge.continual.feature_memory import FeatureMemory
from geomerge.continual.memory import TaskMemory
from geomerge.continual.options import ContinualOptions
from geomerge.continual.report import MergeReport
from geomerge.networks.wrappers import plain_module
from geomerge.options import check_known
from geomerge.strategies.avalanche import SupervisedTemplate
from geomerge.strategies.keywords import accept_options, take_options
from geomerge.strategies.merger import Merger

__all__ = ["EXPERT_STARTS", "GeodesicMerge"]

EXPERT_STARTS = ("warm", "first")


class GeodesicMerge(SupervisedTemplate):  # type: ignore[misc]
    """Merge an expert of every experience into the network before it.

    The model is trained on each experience by Avalanche's own loop, with all plugins, loggers and
    metrics. Then a walk starts at the network before, in the metric of the remembered tasks, toward
    the expert's function on the new inputs, and the merged weights are written back in place: every
    ``after_training_exp`` sees those. Of a learned task a sketch, moments of its inputs and outputs
    on pseudo-inputs are stored; where those fail on the first inputs, statistics of classes in
    feature space, from which the head is written. Examples are stored only if asked for.

    Weights that require no gradient, or that the optimizer does not hold, stay as they are. (Other
    strategies of Avalanche add the latter to the optimizer.)

    Args:
        model: Network; with ``MultiTaskModule`` every task has its head, and heads may grow.
        optimizer: Optimizer of the expert; its state is fresh in every experience.
        criterion: Loss of the expert, cross-entropy by default; a walk with labels goes down the
            cross-entropy.
        memory: ``"sketch"`` stores no examples of earlier tasks; a number stores so many unlabelled
            inputs of each as well.
        options: Options of the merges.
        expert_init: Start of each expert's training: ``"warm"``, the network before, or
            ``"first"``, the weights of the very beginning.
        **keywords: Options of the merges by name, such as ``epochs``, ``labels``, ``budget``
            (:class:`~geomerge.continual.ContinualOptions` lists them), and arguments that every
            strategy of Avalanche takes, such as ``train_mb_size``, ``train_epochs``, ``device``,
            ``plugins``, ``evaluator``, ``eval_every``.

    Raises:
        OptionError: For a value that is not known or out of range; in training for an online
            stream without `merge_every`, or a memory that is too small.

    Example:
        >>> import io
        >>> import torch
        >>> from avalanche.benchmarks import benchmark_from_datasets
        >>> from avalanche.benchmarks.utils import as_classification_dataset
        >>> from avalanche.logging import TextLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from geomerge.strategies import GeodesicMerge
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(2, 64, 5), torch.arange(64) % 2
        >>> data = []
        >>> for k in range(2):
        ...     dataset = TensorDataset(x[k], y)
        ...     dataset.targets = y.tolist()
        ...     data.append(as_classification_dataset(dataset))
        >>> stream = benchmark_from_datasets(train=data).train_stream
        >>> model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> strategy = GeodesicMerge(
        ...     model=model,
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     pseudo_inputs=100,
        ...     train_mb_size=16,
        ...     evaluator=EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
        ... )
        >>> for experience in stream:
        ...     _ = strategy.train(experience)
        >>> len(strategy.merge_reports), len(strategy.memory)
        (1, 2)
    """

    @accept_options
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Any = None,
        memory: str | int | None = None,
        options: ContinualOptions | None = None,
        expert_init: str = "warm",
        **keywords: Any,
    ) -> None:
        check_known("expert_init", expert_init, EXPERT_STARTS)
        merger = Merger(take_options(options, memory, keywords))
        if keywords.get("plugins") is not None:
            keywords["plugins"] = list(keywords["plugins"])  # Avalanche appends its own
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            **keywords,
        )
        self.merger = merger
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        plain = plain_module(model)
        names = {name: id(p) in held for name, p in plain.named_parameters()}
        # An optimizer that holds none of the weights is of another model, and Avalanche adds all.
        self._left_out = {n for n, known in names.items() if not known and any(names.values())}
        self._expert_init = expert_init
        self._first: dict[str, Tensor] | None = None

    @property
    def merge_reports(self) -> list[MergeReport]:
        """Report of each merge, one for every head of every experience after the first."""
        return self.merger.reports

    @property
    def memory(self) -> list[TaskMemory]:
        """Memory of each task."""
        return self.merger.memory

    @property
    def features(self) -> FeatureMemory | None:
        """Class statistics in feature space; None where the head is trained."""
        return self.merger.features.memory

    @property
    def memory_bytes(self) -> int:
        """Number of bytes stored of all tasks."""
        first = 0 if self._first is None else sum(p.nbytes for p in self._first.values())
        return self.merger.memory_bytes + first

    def check_model_and_optimizer(self, reset_optimizer_state: bool = True, **kwargs: Any) -> None:
        """Grow the model and make a fresh optimizer, without the momentum of the last expert."""
        reset = reset_optimizer_state and not self.merger.waiting
        super().check_model_and_optimizer(reset_optimizer_state=reset, **kwargs)

    def make_optimizer(self, **kwargs: Any) -> None:
        """Make a fresh optimizer, without the weights that it was never to hold."""
        super().make_optimizer(**kwargs)
        parameters = plain_module(self.model).named_parameters()
        out = {id(p) for name, p in parameters if name in self._left_out}
        for group in self.optimizer.param_groups if out else ():
            group["params"] = [p for p in group["params"] if id(p) not in out]

    def merge(self) -> None:
        """Merge what was learned since the last merge, before `merge_every` experiences have come.

        Raises:
            GeomergeError: As in training.
        """
        if self.merger.waiting:
            if self._expert_init == "first":
                self._put_back()
            self.merger.finish(self, now=True)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        self.merger.begin(self)
        if self._expert_init == "first" and not self.merger.waiting:
            self._restart()
        super()._train_exp(experience, eval_streams, **kwargs)
        last = self.merger.waiting + 1 >= self.merger.options.merge_every
        if self._expert_init == "first" and last:
            self._put_back()
        self.merger.finish(self)

    @torch.no_grad()
    def _restart(self) -> None:
        """Write the first weights into the model; weights added since stay."""
        parameters = dict(plain_module(self.model).named_parameters())
        if self._first is None:
            self._first = {name: p.detach().clone() for name, p in parameters.items()}
        for name, p in self._first.items():
            parameters[name][: len(p)].copy_(p)

    @torch.no_grad()
    def _put_back(self) -> None:
        """Restore weights that training has not changed, such as other heads, to learned values."""
        assert self._first is not None
        for name, p in plain_module(self.model).named_parameters():
            if name in self._first and torch.equal(p[: len(self._first[name])], self._first[name]):
                before = self.merger.before[name]
                p[: len(before)].copy_(before)
