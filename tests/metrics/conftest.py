"""Networks of every kind of layer, tiny and in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geomerge import Network


class Words(nn.Module):
    """An embedding of word numbers, which come as floats; tied to the last layer or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.mixed = nn.Conv1d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 6, bias=False)
        if tied:
            self.last.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        words = self.embedding((5 * x.sigmoid()).long())
        mixed: Tensor = self.mixed(words.transpose(1, 2)).tanh()
        return self.last(mixed.mean(2))


class Sequences(nn.Module):
    """A transformer; positions come before or after examples."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
        self.last = nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        return self.last(self.layer(self.first(x)).mean(1 if self.batch_first else 0))


class Residual(nn.Module):
    """Adds a layer's output to its input, twice the same layer, once past it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.inner(x).tanh()
        past = nn.functional.linear(x, self.last.weight).square()
        return self.last(x) + past


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 2, stride=2, bias=False),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 1, groups=2),
        nn.Conv2d(6, 4, 3, padding=2, dilation=2, padding_mode="circular"),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (2, 1), padding=(0, 1)),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 4, batch_first=True)
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.gru(x)[0][:, -1])

    return Last()


KINDS = {
    "convolutions": (convolutions, (2, 4, 4)),
    "recurrent": (recurrent, (5, 3)),
    "residual": (Residual, (5,)),
    "sequences": (lambda: Sequences(True), (4, 3)),
    "sequences-first": (lambda: Sequences(False), (7, 3)),  # as many positions as examples
    "words": (lambda: Words(False), (4,)),
    "words-tied": (lambda: Words(True), (4,)),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[Network, Tensor]:
    """A network in float64 and a batch of its inputs."""
    make, shape = KINDS[request.param]
    torch.manual_seed(0)
    network = Network(make().double())
    return network, torch.randn(7, *shape, dtype=torch.float64)
