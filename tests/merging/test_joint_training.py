"""Joint training, which stands beside every merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import prepared_of
from torch import nn

from geomerge import Checkpoint, Expert, MergeOptions, Network, load_checkpoint
from geomerge.errors import Problems
from geomerge.evaluation.accuracy import accuracy
from geomerge.merging.joint_training import NotTrainableError, joint_samples, train_jointly
from geomerge.merging.prepare import prepare
from geomerge.merging.presets.joint import JointPreset
from geomerge.weight_space import WeightSpace

BOTH = {"manifold": ("digits",)}


def space_of(digits: Path, options: dict[str, Any] = BOTH) -> WeightSpace:
    return prepared_of([load_checkpoint(digits / f"{name}.pt") for name in "ab"], options).space


def test_it_learns_every_task_and_the_same_again(digits: Path) -> None:
    space = space_of(digits)
    w, samples = train_jointly(space, 20_000, seed=3)
    assert 0.95 * 20_000 < samples <= 20_000
    for expert in space:
        assert expert.task is not None
        assert accuracy(expert.network, w, expert.task.test) > 0.8
        apart = float((w - expert.weights).norm())
        assert apart > 0.5 * float(expert.weights.norm())  # a network of its own
    again, _ = train_jointly(space_of(digits), 20_000, seed=3)
    assert torch.equal(w, again)


def test_no_network_of_the_merge_is_changed(digits: Path) -> None:
    space = space_of(digits)
    before = [expert.weights.clone() for expert in space]
    train_jointly(space, 500, seed=0)
    assert all(torch.equal(expert.weights, w) for expert, w in zip(space, before, strict=True))


def test_widths_that_have_no_name_are_trained_too() -> None:
    networks = []
    for seed, task in enumerate(("digits", "digits-permuted")):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 10))
        networks.append(Checkpoint(module.state_dict(), {"task": task, "architecture": "mlp"}))
    space = prepared_of(networks, BOTH).space
    w, _ = train_jointly(space, 20_000, seed=0)
    first = space.experts[0]
    assert first.task is not None
    assert accuracy(first.network, w, first.task.test) > 0.5


class Scaled(nn.Module):
    """A layer that nothing can initialise again."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * self.scale


@pytest.mark.parametrize("head", ["offset", "separate"])
def test_other_heads_and_bare_weights_say_why_not(digits: Path, head: str) -> None:
    with pytest.raises(NotTrainableError, match="shared head"):
        train_jointly(space_of(digits, dict(BOTH, head=head)), 500, seed=0)
    space = space_of(digits)
    space = replace(space, network=Network(nn.Sequential(Scaled(), nn.Linear(64, 10))))
    with pytest.raises(NotTrainableError, match="Scaled"):
        train_jointly(space, 500, seed=0)


@pytest.mark.parametrize(("layer", "measured"), [(nn.Conv2d, 500), (None, 1347)])
def test_metric_of_convolutions_with_batchnorm_takes_fewer_samples(
    layer: type[nn.Module] | None, measured: int
) -> None:
    networks = []
    for seed, task in enumerate(("digits", "digits-permuted")):
        torch.manual_seed(seed)
        first = [] if layer is None else [nn.Unflatten(1, (1, 8, 8)), layer(1, 2, 3), nn.Flatten()]
        width = 64 if layer is None else 72
        body = [nn.Flatten(), *first, nn.BatchNorm1d(width), nn.Linear(width, 10)]
        networks.append(Expert.from_module(nn.Sequential(*body), task))
    made = prepare(networks, MergeOptions(), Problems(strict=True))
    assert made is not None
    assert made.space.bn == "re-estimate"
    sizes = [len(expert.task.train.labels) for expert in made.space if expert.task]
    each = sum(min(256, size) for size in sizes)
    assert joint_samples(made.space, 10) == 10 * each + sum(min(measured, s) for s in sizes)
    assert JointPreset(made).metric_inputs == (500 if layer else 2000)
