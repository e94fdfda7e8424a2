"""The merge after an experience, in plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.continual import ContinualOptions, TaskMemory, fit_memory, merge_expert, remember
from geomerge.continual.kept import quadratic_drifts
from geomerge.continual.rehearsal import Rehearsal
from geomerge.data import as_they_are
from geomerge.errors import OptionError

SETTINGS = ContinualOptions(epochs=4, pseudo_inputs=500, rank=8, sketch_inputs=500, batch=50)


def blobs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around centres; another seed is another task."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(600) % 3
    centres = 2 * torch.randn(3, 8, generator=generator)
    return centres[y] + torch.randn(600, 8, generator=generator), y


class Case:
    """A network that has learned one task, an expert of another that forgot the first."""

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

    def loss(self, y: torch.Tensor):  # type: ignore[no-untyped-def]
        return lambda logits: nn.functional.cross_entropy(logits, y)

    def accuracy(self, w: torch.Tensor, task: int) -> float:
        x, y = self.tasks[task]
        return float((self.network.logits(w, x).argmax(1) == y).float().mean())

    def remembered(self, settings: ContinualOptions = SETTINGS) -> TaskMemory:
        x = as_they_are(self.tasks[0][0])
        return remember(self.network, self.first, x, "task 0", None, settings, 0)

    def merge(self, settings: ContinualOptions = SETTINGS, memory: list[TaskMemory] | None = None):  # type: ignore[no-untyped-def]
        return merge_expert(
            self.first, self.expert, as_they_are(self.tasks[1][0]),
            [self.remembered(settings)] if memory is None else memory, lambda _: self.network,
            settings, labels=self.tasks[1][1],
        )  # fmt: skip


@pytest.fixture(scope="module")
def case() -> Case:
    found = Case()
    assert found.accuracy(found.first, 0) > 0.97
    assert found.accuracy(found.expert, 0) < 0.8
    return found


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, labels=True),
        replace(SETTINGS, pseudo_inputs=0, examples=30),
        replace(SETTINGS, budget=0.3),
        replace(SETTINGS, metric="euclidean"),
        replace(SETTINGS, metric="euclidean", budget=0.3),
        replace(SETTINGS, manifold=0),
        replace(SETTINGS, manifold="new"),
    ],
)
def test_the_merged_network_does_both_tasks(case: Case, settings: ContinualOptions) -> None:
    w, report = case.merge(settings)
    assert case.accuracy(w, 0) > 0.95
    assert case.accuracy(w, 1) > 0.95
    assert report.pick.value <= min(point.value for point in (*report.line, *report.path))
    assert report.used["labels"] == (600 if settings.labels else 0)


def test_without_pseudo_inputs_the_sketch_alone_keeps_something(case: Case) -> None:
    settings = replace(SETTINGS, pseudo_inputs=0, budget=0.005, epochs=8)
    memory = [case.remembered(settings)]
    w, report = case.merge(settings, memory)
    assert len(memory[0].targets) == 0
    assert report.rows > 0
    assert report.predicted["task 0"] <= 0.005 * 1.001
    assert case.accuracy(w, 0) > case.accuracy(case.expert, 0) + 0.1


def test_a_budget_holds_and_says_what_it_took(case: Case) -> None:
    free = case.merge(SETTINGS)[1]
    budget = free.predicted["task 0"] / 2
    w, report = case.merge(replace(SETTINGS, budget=budget))
    assert report.predicted["task 0"] <= budget * 1.001
    assert 0 < report.solves <= report.rows
    drifts = quadratic_drifts([case.remembered()], lambda _: case.network, case.first)
    assert drifts[0].value(w) == pytest.approx(report.predicted["task 0"])
    loose = case.merge(replace(SETTINGS, budget=1e6))[1]
    assert (loose.rows, loose.solves, loose.shortened) == (0, 0, 0)


def test_what_is_remembered_has_not_drifted_yet(case: Case) -> None:
    for count in (1, 17, 100, 499, 500, 501):
        remembered = case.remembered(replace(SETTINGS, pseudo_inputs=count, examples=7))
        drift, changed = Rehearsal([remembered], lambda _: case.network, 8, 0).drift(case.first)
        assert drift["task 0"] == pytest.approx(0, abs=1e-5)
        assert changed["task 0"] == 0


def test_frozen_weights_stay(case: Case) -> None:
    free = torch.ones(case.network.n, dtype=torch.bool)
    free[case.network.slices["0.weight"]] = False
    free[case.network.slices["0.bias"]] = False
    expert = torch.where(free, case.expert, case.first)
    for settings in (
        SETTINGS,
        replace(SETTINGS, budget=0.1),
        replace(SETTINGS, metric="euclidean"),
    ):
        w, _ = merge_expert(
            case.first, expert, as_they_are(case.tasks[1][0]), [case.remembered(settings)],
            lambda _: case.network, settings, free=free,
        )  # fmt: skip
        assert torch.equal(w[~free], case.first[~free])
        assert not torch.equal(w[free], case.first[free])


def test_a_budget_holds_with_running_statistics_too() -> None:
    torch.manual_seed(0)
    network = Network(
        nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))
    )
    x, _ = blobs(1)
    memory = [remember(network, network.initial, as_they_are(x), "task 0", None, SETTINGS, 0)]
    other = as_they_are(blobs(2)[0])
    expert = network.initial + 0.1 * torch.randn(network.n).abs()
    for budget in (0.001, 0.01, 0.1):
        settings = replace(SETTINGS, budget=budget)
        _, report = merge_expert(
            network.initial, expert, other, memory, lambda _: network, settings
        )
        assert report.predicted["task 0"] <= budget * 1.001


def test_the_same_seed_gives_the_same_bits(case: Case) -> None:
    one, first = case.merge()
    two, second = case.merge()
    assert torch.equal(one, two)
    assert first == second
    assert not torch.equal(one, case.merge(replace(SETTINGS, seed=5))[0])


def test_an_expert_that_learned_nothing_leaves_the_network(case: Case) -> None:
    w, report = merge_expert(
        case.first, case.first, as_they_are(case.tasks[0][0]), [case.remembered()],
        lambda _: case.network, SETTINGS,
    )  # fmt: skip
    assert max(report.pick.drift.values()) < 1e-3
    assert report.pick.changed["task 0"] < 0.01
    assert case.accuracy(w, 0) == pytest.approx(case.accuracy(case.first, 0), abs=0.01)


def test_memory_shrinks_to_a_limit_and_still_works(case: Case) -> None:
    memory = [case.remembered(), replace(case.remembered(), name="task 1")]
    whole = sum(task.nbytes for task in memory)
    for share in (0.9, 0.6, 0.35):
        small = fit_memory(memory, int(share * whole), lambda _: case.network, case.first)
        assert sum(task.nbytes for task in small) <= share * whole
        assert 0 < small[0].kept["moments"] <= 1
        w, _ = case.merge(SETTINGS, small[:1])
        assert case.accuracy(w, 0) > 0.9
    with pytest.raises(OptionError, match="raise the limit"):
        fit_memory(memory, 1000, lambda _: case.network, case.first)


def test_oldest_sketches_become_one_before_memory_gives_up(case: Case) -> None:
    settings = replace(SETTINGS, pseudo_inputs=0, examples=1)
    memory = [replace(case.remembered(settings), name=f"task {k}") for k in range(4)]
    least = sum(t.origin.nbytes + t.examples.nbytes + t.targets.nbytes for t in memory)
    small = fit_memory(memory, least + 2000, lambda _: case.network, case.first)
    assert [t.sketch is None for t in small] != [False] * 4
    assert sum(t.tasks for t in small if t.sketch is not None) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damping": 0}, "damping is 0, expected a positive number"),
        ({"examples": -1}, "examples is -1, expected 0 or more"),
        ({"momentum": 1.0}, "momentum"),
        ({"manifold": "late"}, "manifold is 'late'"),
        ({"statistics": "frozen"}, "unknown statistics 'frozen'"),
        ({"budget": -1.0}, "budget is -1.0"),
        ({"inputs": 0}, "inputs is 0"),
    ],
)
def test_settings_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        replace(SETTINGS, **changes)  # type: ignore[arg-type]


def test_classes_that_are_masked(case: Case) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = case.network.module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.full((len(x), 2), -1e9)
            return torch.cat([self.inner(x), hidden], dim=1)

    network = Network(Masked())
    x = as_they_are(case.tasks[0][0])
    memory = [remember(network, case.first, x, "task 0", None, SETTINGS, 0)]
    w, _ = merge_expert(
        case.first, case.expert, as_they_are(case.tasks[1][0]), memory, lambda _: network, SETTINGS
    )
    assert case.accuracy(w, 0) > 0.95
    assert case.accuracy(w, 1) > 0.95


def test_what_a_merge_cannot_do(case: Case) -> None:
    with pytest.raises(OptionError, match="needs the experience's labels"):
        merge_expert(
            case.first, case.expert, as_they_are(case.tasks[1][0]), [], lambda _: case.network,
            replace(SETTINGS, labels=True),
        )  # fmt: skip
    tokens = as_they_are(torch.randint(0, 9, (20, 8)))
    network = Network(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(32, 3)))
    with pytest.raises(OptionError, match="integers"):
        remember(network, network.initial, tokens, "task 0", None, SETTINGS, 0)
