"""Two small networks on tasks made up, as methods of the comparison see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from geomerge import Checkpoint, Network
from geomerge.comparison.context import Context
from geomerge.data.task import make_task
from geomerge.evaluation.pick import parse_pick
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side, Sides


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3))


def normed_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.flatten(1)).relu()
        return self.head(x + self.second(x).relu())


MODULES = {"mlp": mlp, "normed-cnn": normed_cnn, "residual": Residual}

MakeCase = Callable[..., Context]


@pytest.fixture
def make_case() -> MakeCase:
    """Make a context of two untrained networks; ``twin`` makes b the same as a."""

    def make(kind: str = "mlp", *, twin: bool = False, base: bool = False, **given: int) -> Context:
        torch.manual_seed(0)
        modules = [MODULES[kind]() for _ in "ab"]
        for module in modules:
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.uniform_(-0.3, 0.3)
                    layer.running_var.uniform_(0.5, 2)
        network = Network(modules[0])
        w_a = network.initial
        w_b = w_a if twin else Network(modules[1]).initial
        sides = Sides(network, [], "shared", bn="keep")
        for k, (name, w) in enumerate((("a", w_a), ("b", w_b))):
            x = torch.randn(300, 2, 4, 4) + k
            y = network.logits(w, x).argmax(dim=1)
            task = make_task(f"task {name}", (x[:200], y[:200]), (x[200:], y[200:]), None)
            side = Side(name, Checkpoint({}, {}, {}, f"{name}.pt"), network, w)
            side.task, side.manifold, side.manifold_name = task, task.train.inputs, task.name
            sides.all.append(side)
        rule = parse_pick("balanced", {"a": 1.0, "b": 1.0})
        ancestor = torch.lerp(w_a, w_b, 0.5) if base else None
        return Context(sides, MergeOptions(), rule, given.get("budget", 2000), ancestor)

    return make
