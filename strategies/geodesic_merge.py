"""``GeodesicMerge``: train an expert, then walk from the network before to one that does both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss
from torch.optim import Optimizer

from geomerge.continual.memory import TaskMemory
from geomerge.continual.report import MergeReport
from geomerge.continual.settings import ContinualOptions
from geomerge.options import check_known
from geomerge.strategies.merger import Merger, merge_settings

__all__ = ["EXPERT_STARTS", "GeodesicMerge"]

EXPERT_STARTS = ("warm", "first")


class GeodesicMerge(SupervisedTemplate):  # type: ignore[misc]
    """Merge an expert of every experience into the network before it.

    The model is trained on each experience by Avalanche's own loop, with all plugins, loggers and
    metrics. Then a walk starts at the network before, in the metric of the remembered tasks, toward
    the expert's function on the new inputs, and the merged weights are written back in place: every
    ``after_training_exp`` sees those. Of a learned task a sketch, moments of its inputs and outputs
    on pseudo-inputs are kept; examples only if they are asked for.

    Args:
        model: The network; with ``MultiTaskModule`` every task has its head, and heads may grow.
        optimizer: For the expert; its state is fresh in every experience.
        criterion: For the expert; a walk with labels goes down the cross-entropy.
        memory: ``"sketch"`` keeps no examples of earlier tasks; a number so many unlabelled
            inputs of each beside the sketch.
        manifold: Whose function the metric keeps: ``"earlier"``, all remembered tasks;
            ``"new"``; or the number of one task.
        labels: Whether the walk goes down the loss on the new labels, not toward the expert.
        settings: All other settings of the merges, and the three above where they are not given.
        expert_init: Where an expert starts: ``"warm"``, the network before, or ``"first"``, the
            weights of the very beginning.
        train_mb_size: Batch size of the expert's training.
        train_epochs: Of the expert.
        eval_mb_size: Batch size of evaluation.
        device: Where all is computed.
        plugins: Others beside it.
        evaluator: Metrics and loggers.
        eval_every: As in Avalanche.
        peval_mode: As in Avalanche.
        **base_kwargs: As in Avalanche.

    Raises:
        OptionError: For a value that is not known or out of range; in training for an online
            stream.

    Example:
        >>> import io
        >>> import torch
        >>> from avalanche.benchmarks import benchmark_from_datasets
        >>> from avalanche.benchmarks.utils import as_classification_dataset
        >>> from avalanche.logging import TextLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from geomerge.strategies import GeodesicMerge, ContinualOptions
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
        ...     settings=ContinualOptions(pseudo_inputs=100),
        ...     train_mb_size=16,
        ...     evaluator=EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
        ... )
        >>> for experience in stream:
        ...     _ = strategy.train(experience)
        >>> len(strategy.merge_reports), len(strategy.memory)
        (1, 2)
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Any = None,
        memory: str | int | None = None,
        manifold: str | int | None = None,
        labels: bool | None = None,
        settings: ContinualOptions | None = None,
        expert_init: str = "warm",
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        **base_kwargs: Any,
    ) -> None:
        check_known("expert_init", expert_init, EXPERT_STARTS)
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=None if plugins is None else list(plugins),
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
            **base_kwargs,
        )
        self.merger = Merger(merge_settings(settings, memory, manifold, labels))
        self._expert_init = expert_init
        self._first: dict[str, Tensor] | None = None

    @property
    def merge_reports(self) -> list[MergeReport]:
        """One for each experience after the first."""
        return self.merger.reports

    @property
    def memory(self) -> list[TaskMemory]:
        """What is kept of each task."""
        return self.merger.memory

    @property
    def memory_bytes(self) -> int:
        """Bytes kept of all tasks."""
        first = 0 if self._first is None else sum(p.nbytes for p in self._first.values())
        return self.merger.memory_bytes + first

    def check_model_and_optimizer(self, reset_optimizer_state: bool = True, **kwargs: Any) -> None:
        """Grow the model and make a fresh optimiser: another expert's momentum is none of ours."""
        super().check_model_and_optimizer(reset_optimizer_state=reset_optimizer_state, **kwargs)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        self.merger.begin(self)
        if self._expert_init == "first":
            self._start_anew()
        super()._train_exp(experience, eval_streams, **kwargs)
        if self._expert_init == "first":
            self._put_back()
        self.merger.finish(self)

    @torch.no_grad()
    def _start_anew(self) -> None:
        """Write the first weights into the model; what has grown since keeps its own."""
        parameters = dict(self.model.named_parameters())
        if self._first is None:
            self._first = {name: p.detach().clone() for name, p in parameters.items()}
        for name, p in self._first.items():
            parameters[name][: len(p)].copy_(p)

    @torch.no_grad()
    def _put_back(self) -> None:
        """Give weights that training has left alone, such as other heads, their learned values."""
        assert self._first is not None
        for name, p in self.model.named_parameters():
            if name in self._first and torch.equal(p[: len(self._first[name])], self._first[name]):
                before = self.merger.before[name]
                p[: len(before)].copy_(before)
