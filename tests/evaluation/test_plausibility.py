from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.evaluation import plausibility
from geomerge.evaluation.plausibility import (
    EXAMPLES,
    doubts,
    first_look,
    first_looks,
    normalisation_doubt,
)
from geomerge.metrics.kronecker.factor import Moments

SIZE = 8  # pixels of an image, squared


def bright(threshold: float) -> gm.Expert:
    """Two classes of images, grey and white, told apart by the mean of an image's numbers.

    White is 1 where bytes are scaled by 1 / 255 alone, and 0.5 where they are standardised.
    """
    labels = (torch.arange(3000) % 5 > 0).long()
    x = (240 + 15 * labels).view(-1, 1, 1, 1).expand(-1, 1, SIZE, SIZE).to(torch.uint8)
    task = gm.Task.from_tensors(x, labels, name="bright")
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, SIZE**2))
        net[1].bias.copy_(torch.tensor([0.0, -threshold * SIZE**2]))
    return gm.Expert.from_module(net, task, name="a")


@pytest.mark.parametrize("short", [False, True])
def test_another_normalisation_is_proposed_with_few_examples_too(
    monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    if short:
        monkeypatch.setattr(plausibility, "_OPERATIONS", 40 * 2 * SIZE**2)
        monkeypatch.setattr(plausibility, "_SCREENED", 1)
    expert = bright(0.97)  # for inputs in [0, 1], and the task's are standardised
    look = first_look(replaced := bright(0.0))
    counts = len(look.examples.labels), len(look.screen.labels)
    assert counts == ((40, 1) if short else (min(EXAMPLES, counts[0]), counts[0]))
    assert look.score == 1.0
    assert normalisation_doubt(replaced, look) is None
    told = normalisation_doubt(expert)
    assert told is not None
    assert "hardly trained with this normalisation" in told


def test_exchanged_tasks_are_noticed_with_few_examples_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plausibility, "_OPERATIONS", 40 * 2 * SIZE**2)
    monkeypatch.setattr(plausibility, "_SCREENED", 1)
    generator = torch.Generator().manual_seed(0)
    experts = []
    for k, name in enumerate("ab"):
        x = torch.randn(1200, 10, generator=generator)
        task = gm.Task.from_tensors(x, x[:, 5 * k : 5 * k + 5].argmax(1), name=f"part {k}")
        net = nn.Linear(10, 5)
        with torch.no_grad():
            net.bias.zero_()
            net.weight.zero_()[:, 5 * (1 - k) : 5 * (1 - k) + 5] = torch.eye(5)
        experts.append(gm.Expert.from_module(net, task, name=name))
    looks = first_looks(experts)
    assert any("exchanged" in sentence for sentence in doubts(experts, looks))


class Attending(nn.Module):
    """Attention between rows, without the head of a usual network, that counts its inputs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, classes)
        self.passed = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passed += len(x)
        out: torch.Tensor = self.head(self.attention(x, x, x)[0].mean(dim=1))
        return out


def attending(classes: int) -> gm.Expert:
    torch.manual_seed(0)
    x = torch.randn(1200, 6, 8)
    task = gm.Task.from_tensors(x, torch.arange(1200) % classes, name="rows")
    return gm.Expert.from_module(Attending(classes), task, name="a")


def test_a_first_look_passes_few_inputs_of_a_network_with_long_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each = 6 * 4 * 8 * 8 + 2 * 6 * 6 * 8 + 8 * 5  # projections, scores and values, head
    monkeypatch.setattr(plausibility, "_OPERATIONS", 30 * each)
    expert = attending(5)
    module = expert.network.module
    assert isinstance(module, Attending)
    before = module.passed
    look = first_look(expert)
    assert len(look.examples.labels) == 30
    assert module.passed - before == 31  # one to count the multiplications


def test_no_doubt_is_raised_on_too_few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plausibility, "_OPERATIONS", 1)
    for classes, told in ((2, False), (5, True)):  # six right of two classes may be guesses
        expert = attending(classes)
        look = replace(first_look(expert), score=0.0)
        assert len(look.examples.labels) == 6
        assert any("at chance" in sentence for sentence in doubts([expert], {"a": look})) is told


def test_moments_that_are_only_timed_take_less_memory() -> None:
    rows = torch.randn(3, 2500)
    timed = Moments(held=False)
    timed.add(rows)
    assert timed._sum is not None
    assert timed._sum.shape == (2500, 1024)
