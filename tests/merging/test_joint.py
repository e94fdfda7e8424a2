"""Joint training, which stands beside every merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from geomerge import Checkpoint, MergeOptions, Network, load_checkpoint
from geomerge.evaluation.accuracy import accuracy
from geomerge.merging.joint import NotTrainableError, train_jointly
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.sides import Sides

BOTH = MergeOptions(manifold=("digits",))


def sides_of(digits: Path, options: MergeOptions = BOTH) -> Sides:
    return prepare_sides([load_checkpoint(digits / f"{name}.pt") for name in "ab"], options)


def test_it_learns_every_task_and_the_same_again(digits: Path) -> None:
    sides = sides_of(digits)
    w, samples = train_jointly(sides, 20_000, seed=3)
    assert 0.95 * 20_000 < samples <= 20_000
    for side in sides:
        assert side.task is not None
        assert accuracy(side.network, w, side.task.test) > 0.8
        assert float((w - side.w).norm()) > 0.5 * float(side.w.norm())  # a network of its own
    again, _ = train_jointly(sides_of(digits), 20_000, seed=3)
    assert torch.equal(w, again)


def test_no_network_of_the_merge_is_changed(digits: Path) -> None:
    sides = sides_of(digits)
    before = [side.w.clone() for side in sides]
    train_jointly(sides, 500, seed=0)
    assert all(torch.equal(side.w, w) for side, w in zip(sides, before, strict=True))


def test_widths_that_have_no_name_are_trained_too() -> None:
    networks = []
    for seed, task in enumerate(("digits", "digits-permuted")):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 10))
        networks.append(Checkpoint(module.state_dict(), {"task": task}))
    sides = prepare_sides(networks, BOTH)
    w, _ = train_jointly(sides, 20_000, seed=0)
    first = sides.all[0]
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
        train_jointly(sides_of(digits, replace(BOTH, head=head)), 500, seed=0)
    sides = sides_of(digits)
    sides.network = Network(nn.Sequential(Scaled(), nn.Linear(64, 10)))
    with pytest.raises(NotTrainableError, match="Scaled"):
        train_jointly(sides, 500, seed=0)
