"""A network that has learned one task, and an expert of another that forgot the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.continual import (
    ContinualOptions,
    Experience,
    MergeReport,
    TaskMemory,
    merge_expert,
    remember,
)
from geomerge.data import as_they_are
from geomerge.options import replace_options

OPTIONS = ContinualOptions(epochs=4, pseudo_inputs=500, rank=8, sketch_inputs=500, batch=50)


def blobs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around centres; another seed is another task."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(600) % 3
    centres = 2 * torch.randn(3, 8, generator=generator)
    return centres[y] + torch.randn(600, 8, generator=generator), y


class Case:
    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = (nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
        self.network = Network(nn.Sequential(*layers))
        self.tasks = [blobs(1), blobs(2)]
        self.first = self.train(self.network.initial, *self.tasks[0])
        self.expert = self.train(self.first, *self.tasks[1])

    def train(self, w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for step in range(400):
            index = torch.arange(step * 50, step * 50 + 50) % len(y)
            loss = self.loss(y[index])
            w = w - 0.1 * (1 - step / 400) * self.network.gradient(w, x[index], loss)[1]
        return w

    def loss(self, y: torch.Tensor) -> Any:
        return lambda logits: nn.functional.cross_entropy(logits, y)

    def accuracy(self, w: torch.Tensor, task: int) -> float:
        x, y = self.tasks[task]
        return float((self.network.logits(w, x).argmax(1) == y).float().mean())

    def options(self, **changes: Any) -> ContinualOptions:
        return replace_options(OPTIONS, **changes)

    def experience(self, task: int) -> Experience:
        x, y = self.tasks[task]
        return Experience(as_they_are(x), f"task {task}", labels=y)

    def remembered(self, **changes: Any) -> TaskMemory:
        return remember(self.network, self.first, self.experience(0), self.options(**changes))

    def merge(
        self, memory: list[TaskMemory] | None = None, **changes: Any
    ) -> tuple[torch.Tensor, MergeReport]:
        memory = [self.remembered(**changes)] if memory is None else memory
        return merge_expert(
            self.first, self.expert, self.experience(1), memory, lambda _: self.network,
            self.options(**changes),
        )  # fmt: skip


@pytest.fixture(scope="session")
def case() -> Case:
    found = Case()
    assert found.accuracy(found.first, 0) > 0.97
    assert found.accuracy(found.expert, 0) < 0.8
    return found
