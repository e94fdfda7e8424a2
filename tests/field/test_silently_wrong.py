"""Situations that once ended with exit code 0 and a wrong result: each is said, held or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import geomerge as gm
from geomerge.errors import CheckpointError, Problems
from geomerge.merging.prepare import prepare


def task_of(name: str = "stripes", seed: int = 0, count: int = 120) -> gm.Task:
    """Return a task of three classes that a linear network can learn."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.randn(count, 6, generator=generator)
    x[torch.arange(count), y] += 3
    return gm.Task.from_tensors(x, y, name=name)


class WithBuffer(nn.Module):
    """A linear network with a buffer that its inputs pass."""

    def __init__(self, value: Tensor, use: Callable[[Tensor, Tensor], Tensor], keep: bool) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.use = use
        self.register_buffer("own", value, persistent=keep)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(x, self.own))


class Following(nn.Module):
    """A statistic of its own make, which training changes."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("level", torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.level = 0.9 * self.level + 0.1 * x.mean().detach()
        return self.head(x - self.level)


def permuted(x: Tensor, order: Tensor) -> Tensor:
    return x[:, order]


def masked(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask


def unused(x: Tensor, count: Tensor) -> Tensor:
    return x


ORDERS = torch.arange(6), torch.tensor([5, 4, 3, 2, 1, 0])
MASKS = torch.arange(6) < 3, torch.arange(6) > 2


@pytest.mark.parametrize("keep", [True, False], ids=["stored", "not stored"])
@pytest.mark.parametrize(
    ("values", "use"),
    [
        (ORDERS, permuted),
        (MASKS, masked),
        (tuple(mask.float() for mask in MASKS), masked),
        ((torch.tensor(2), torch.tensor(3)), masked),
    ],
    ids=["permutation", "mask", "mask of floats", "number"],
)
def test_constants_that_differ_are_refused_by_name(
    values: tuple[Tensor, Tensor], use: Callable[[Tensor, Tensor], Tensor], keep: bool
) -> None:
    modules = [WithBuffer(value, use, keep) for value in values]
    experts = [gm.Expert.from_module(m, task_of(n)) for m, n in zip(modules, "ab", strict=True)]
    with pytest.raises(CheckpointError, match=r"a and b differ in 'own'"):
        gm.merge(experts, steps=1)
    assert any("'own'" in problem for problem in gm.check(experts).problems)


@pytest.mark.parametrize(
    "make",
    [
        lambda k: WithBuffer(torch.tensor(k), unused, True),
        lambda k: WithBuffer(ORDERS[0].clone(), permuted, True),
        lambda k: Following(float(k)),
        lambda k: nn.Sequential(nn.BatchNorm1d(6, momentum=0.1 * k), nn.Linear(6, 3)),
        lambda k: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)),
    ],
    ids=["counter", "equal", "own statistic", "BatchNorm", "spectral norm"],
)
def test_statistics_and_counters_may_differ(make: Callable[[int], nn.Module]) -> None:
    modules = [make(k) for k in (1, 2)]
    for k, module in enumerate(modules):
        module(torch.randn(20, 6) + k)  # statistics of their own
    experts = [gm.Expert.from_module(m, task_of(n)) for m, n in zip(modules, "ab", strict=True)]
    assert prepare(experts, gm.MergeOptions(), Problems(strict=True)) is not None


def test_without_inputs_only_single_numbers_are_taken_for_counters() -> None:
    for values, fits in (((torch.tensor(2), torch.tensor(3)), True), (ORDERS, False)):
        a, b = (WithBuffer(value, permuted, True) for value in values)
        a.use = unused
        experts = [gm.Expert.from_module(a, task_of()), gm.Expert.from_module(b)]
        problems = Problems()
        prepare(experts, gm.MergeOptions(), problems)
        assert (problems == []) is fits
